"""Facts about this machine: checkpoints, tokenizers, models, hosts, devices. It reads and never judges."""
