"""The five system workers: each wires decisions from vsm.core to its channels."""
