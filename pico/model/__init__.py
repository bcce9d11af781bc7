"""The pico-decoder: `Decoder`, its `DecoderConfig` and key/value `Cache`, `load_decoder` and `generate`."""

from pico.model.decoder import Cache, Decoder, DecoderConfig, load_decoder
from pico.model.generation import generate

__all__ = ["Cache", "Decoder", "DecoderConfig", "generate", "load_decoder"]
