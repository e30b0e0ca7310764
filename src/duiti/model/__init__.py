"""The network: load, attention, lora, adapter, freeze, loss, and the module that is trained."""
