"""Byte-pair tokens for quantised ECGs (compiled from rust_bpe). Errors: ValueError or TypeError."""
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

_Symbols = bytes | bytearray | str | npt.NDArray[np.uint8]  # 1-D where an array; str: its UTF-8 bytes
_Ids = npt.NDArray[np.integer[Any]] | Sequence[int]  # 1-D uint16, uint32, int32 or int64 where an array
_IdArray = npt.NDArray[np.integer[Any]]
_Dtype = Literal['uint32', 'int64', 'uint16']  # uint16: vocabularies of at most 65,536 ids
_Range = Literal['record', 'lead'] | tuple[float, float]  # what becomes the levels: min to max, or mV
_Float = npt.NDArray[np.float32]

class Bpe:
    """A vocabulary built once: ids 0.. are the alphabet (all 256 bytes unless given), the merged tokens follow."""

    def __init__(
        self, merges: Iterable[tuple[_Symbols | Sequence[int], int]], alphabet: _Symbols | None = None
    ) -> None:
        """From (token, id) pairs in any order; tokens distinct, ids without gaps."""
    @staticmethod
    def from_pairs(pairs: _IdArray | Iterable[Sequence[int]], alphabet: _Symbols | None = None) -> Bpe:
        """From the two ids that each merge joins, in order: integers (M, 2)."""
    @staticmethod
    def from_json(text: str) -> Bpe:
        """What to_json wrote; other keys are ignored."""
    def to_json(self) -> str:
        """{"format": "ecgnb-bpe", "version": 1, "alphabet": [ints], "merges": [[left, right], ...]}."""
    @staticmethod
    def from_hf(text: str) -> Bpe:
        """A Hugging Face tokenizer.json of model BPE whose tokens are characters U+0000 to U+00FF, one a byte."""
    def to_hf(self) -> str:
        """A tokenizer.json: its ids of symbols.decode('latin-1') are those of encode(symbols)."""

    def encode(self, symbols: _Symbols, dtype: _Dtype = 'uint32') -> _IdArray:
        """Ids by the merges in their order, as training applied them."""
    def encode_batch(self, items: Iterable[_Symbols], threads: int = 0, dtype: _Dtype = 'uint32') -> list[_IdArray]:
        """encode of each item over `threads` threads (0: one for each core)."""
    def encode_longest(self, symbols: _Symbols, dtype: _Dtype = 'uint32') -> _IdArray:
        """Ids by greedy longest match: what published models were trained with."""
    def encode_longest_batch(
        self, items: Iterable[_Symbols], threads: int = 0, dtype: _Dtype = 'uint32'
    ) -> list[_IdArray]:
        """encode_longest of each item over `threads` threads (0: one for each core)."""
    def encode_signals(
        self, x: _Float, levels: int = 26, first: int = 97, range: _Range = 'record', block: int = 0,
        exact: bool = False, threads: int = 0, dtype: _Dtype = 'uint32',
    ) -> tuple[list[_IdArray], _Float]:
        """float32 (B, C, T) mV to (B id arrays, ranges (B, 1, 2), for range='lead' (B, C, 2)); block: samples of a lead
        that stay together (0: all), first: the byte of the lowest level."""

    def decode(self, ids: _Ids) -> bytes:
        """The symbols that ids stand for."""
    def decode_batch(self, items: Iterable[_Ids], threads: int = 0) -> list[bytes]:
        """decode of each item over `threads` threads (0: one for each core)."""
    def decode_signals(
        self, items: Iterable[_Ids], shape: tuple[int, int], ranges: _Float, levels: int = 26, first: int = 97,
        block: int = 0, offset: float = 0.5, divisor: float | None = None, eps: float = 1e-6, partial: bool = False,
        threads: int = 0,
    ) -> _Float:
        """float32 (B, C, T) mV for shape (C, T): code q is (q + offset) / divisor * (high - low + eps) + low, divisor
        `levels` unless given; partial: NaN where tokens end early or are no levels, cut where too many; else error."""
    def spans(self, ids: _Ids) -> npt.NDArray[np.int64]:
        """(tokens, 2): the symbols [start, end) that each token covers."""
    def token(self, id: int) -> bytes:
        """The symbols of one token."""

    @property
    def lengths(self) -> npt.NDArray[np.uint32]:
        """(V,): how many symbols each id stands for."""
    @property
    def pairs(self) -> npt.NDArray[np.uint32]:
        """(M, 2): the two ids that each merge joins, in order; ValueError where the tokens are not made of pairs."""
    @property
    def alphabet(self) -> bytes:
        """The symbols of ids 0 to len(alphabet) - 1."""
    @property
    def merges(self) -> list[tuple[bytes, int]]:
        """The merged tokens and their ids, as Bpe() takes them."""
    def __len__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...
    def __copy__(self) -> Bpe: ...
    def __deepcopy__(self, memo: dict[int, Any]) -> Bpe: ...
    def __getnewargs__(self) -> tuple[list[tuple[bytes, int]], bytes]: ...

def train(
    sequences: Iterable[_Symbols], merges: int, alphabet: _Symbols | None = None, min_frequency: int = 2,
    join: bool = False, threads: int = 1, progress: Callable[[int, int], object] | None = None,
) -> tuple[Bpe, npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """(Bpe, counts (M,), merged (M,)): how often each pair stood in the text when chosen, and was replaced. Most
    frequent pair first, ties to the smallest; progress(done, total) about ten times a second; Ctrl-C stops it."""

def quantise(
    x: _Float, levels: int = 26, first: int = 97, range: _Range = 'record', block: int = 0
) -> tuple[npt.NDArray[np.uint8], _Float]:
    """float32 (B, C, T) mV to (symbols (B, C*T), ranges (B, 1, 2), for range='lead' (B, C, 2))."""
