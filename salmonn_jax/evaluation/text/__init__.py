"""Rules on texts: normalisers, parsers of closed answers, and whether an answer follows its instruction."""
