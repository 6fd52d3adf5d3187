#!/bin/bash
# Startup script that every host of a slice runs as root when it boots. launch/tpu_vm.py renders this template. The job
# starts as soon as the slice is granted, without a connection from the user's machine.
set -euo pipefail
export HOME=/root DEBIAN_FRONTEND=noninteractive
mkdir -p /opt/salmonn

# Mount the buckets.
if ! command -v gcsfuse >/dev/null; then
    key=/usr/share/keyrings/cloud.google.asc
    packages=https://packages.cloud.google.com/apt
    curl --retry 5 -fsSL "$packages/doc/apt-key.gpg" -o "$key"
    echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" >/etc/apt/sources.list.d/gcsfuse.list
    # Other processes hold apt's lock in the first minutes after booting.
    apt-get -o DPkg::Lock::Timeout=600 -o Acquire::Retries=5 update
    apt-get -o DPkg::Lock::Timeout=600 -o Acquire::Retries=5 install --yes gcsfuse
fi
{% for bucket in buckets %}
mkdir -p {{ directory }}/{{ bucket | quote }}
mountpoint -q {{ directory }}/{{ bucket | quote }} || gcsfuse{% for option in mount_options %} --{{ option }}{% endfor %} {{ bucket | quote }} {{ directory }}/{{ bucket | quote }}
{% endfor %}

# Install the package in a new Python environment, because the machine's Python may be too old.
if [[ ! -x /opt/salmonn/venv/bin/python ]]; then
    curl --retry 5 -fsSL https://astral.sh/uv/install.sh | env UV_INSTALL_DIR=/usr/local/bin sh
    /usr/local/bin/uv venv --python 3.12 /opt/salmonn/venv
fi
/usr/local/bin/uv pip install --python /opt/salmonn/venv/bin/python {{ package | quote }} 'jax[tpu]'

cat >/opt/salmonn/train.sh <<'END'
{% for name, value in environment.items() %}
export {{ name }}={{ value | quote }}
{% endfor %}
exec /opt/salmonn/venv/bin/{{ argv | map("quote") | join(" ") }}
END

# systemd restarts the job, except after bad input (exit code 2), and sends SIGTERM only to its main process. The TPU driver locks memory, so its limit is infinite.
cat >/etc/systemd/system/salmonn.service <<'END'
[Unit]
Description=salmonn_jax
StartLimitIntervalSec=infinity
StartLimitBurst={{ max_restarts + 1 }}

[Service]
WorkingDirectory=/opt/salmonn
ExecStart=/bin/bash /opt/salmonn/train.sh
KillMode=mixed
Restart=on-failure
RestartSec=30
RestartPreventExitStatus=2
LimitMEMLOCK=infinity
END
systemctl daemon-reload
systemctl start salmonn
