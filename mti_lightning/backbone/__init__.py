"""The frozen network: a timm model, its weights, and taps on its layers."""
