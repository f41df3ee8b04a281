"""The serving half of Mulligan. Never imports torch, transformers, trl, peft, or anything of trainer/."""
