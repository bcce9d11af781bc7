"""The pico-decoder: `Decoder`, its `DecoderConfig`, and `load_decoder` for a checkpoint."""

from pico.model.decoder import Decoder, DecoderConfig, load_decoder

__all__ = ["Decoder", "DecoderConfig", "load_decoder"]
