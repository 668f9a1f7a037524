"""The ids of memory tasks: digits, names, values, phrases and filler."""

from dataclasses import dataclass, field

import numpy as np

from tokenizer import Tokenizer

PHRASES = ("cue", "query", "is", "value")


@dataclass(frozen=True, eq=False)
class Alphabet:
    """The ids from which tasks build their sequences.

    Attributes:
        bos: the id before every sequence.
        digits: [10] ids of 0 to 9; keys: ids of names; values: ids that names can have as value.
        phrases: ids before a passkey ("cue") and before its query ("query"), between a name and its
            value ("is"), before the query for a value ("value").
        filler: ids from which filler is drawn, or, if `running`, cut as running text.
        family: 0 if any name can have any value; n if each name has n values of its own, the i-th
            name those from n·i on.
    """

    bos: int
    digits: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    phrases: dict[str, np.ndarray]
    filler: np.ndarray = field(repr=False)
    running: bool = False
    family: int = 0

    @classmethod
    def plain(cls, vocab_size: int = 256, *, family: int = 0) -> "Alphabet":
        """Ids without meaning, for models trained on the tasks; every id has one use.

        Without families, half of the ids are names and a quarter are values; with them, an eighth
        is filler and each name has `family` values.

        Raises:
            ValueError: there are too few ids.
        """
        least = 32 + 2 * family
        if vocab_size < least:
            raise ValueError(f"vocab_size = {vocab_size}; allowed: at least {least}")
        ids = np.arange(1, vocab_size)  # 0 is bos
        marks, digits, others = np.split(ids, [len(PHRASES), len(PHRASES) + 10])
        names = len(others) * 7 // 8 // (family + 1) if family else len(others) // 2
        keys, values, filler = np.split(
            others, [names, names * (family + 1) if family else len(others) * 3 // 4]
        )
        phrases = {name: marks[i : i + 1] for i, name in enumerate(PHRASES)}
        return cls(0, digits, keys, values, phrases, filler, family=family)

    @classmethod
    def of_text(cls, tokenizer: Tokenizer, text: np.ndarray) -> "Alphabet":
        """Words of a text, for language models.

        Names and values alternate among whole words of medium frequency in `text`. Filler is cut
        from the text, with these words replaced by the most frequent one, so that they occur only
        in the task.

        Args:
            text: ids, such as `Corpus.tokens`.

        Raises:
            ValueError: a digit takes several tokens, or the text has too few words.
        """
        digits = [tokenizer.encode(str(digit)) for digit in range(10)]
        if any(len(ids) != 1 for ids in digits):
            raise ValueError("the tokenizer spells digits in several tokens; one each is needed")
        counts = np.bincount(text, minlength=tokenizer.vocab_size)
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        words = [id for id in order.tolist() if _is_word(tokenizer.decode_bytes([id]))]
        if len(words) < 32:
            raise ValueError(f"a text with {len(words)} different words; allowed: at least 32")
        chosen = np.array(words[len(words) // 4 :][:512])
        filler = np.where(np.isin(text, chosen), words[0], text)
        phrases = {
            "cue": "\nThe pass key is ",
            "query": "\nWhat is the pass key? The pass key is ",
            "is": " is",
            "value": ". So the value of",
        }
        return cls(
            bos=tokenizer.bos_id,
            digits=np.concatenate(digits).astype(np.int64),
            keys=chosen[::2],
            values=chosen[1::2],
            phrases={k: tokenizer.encode(v).astype(np.int64) for k, v in phrases.items()},
            filler=filler,
            running=True,
        )

    def fill(self, random: np.random.Generator, n: int, length: int) -> np.ndarray:
        """Filler: [n, length] ids; running text wraps around at its end."""
        if not self.running:
            return self.filler[random.integers(0, len(self.filler), (n, length))]
        start = random.integers(0, len(self.filler), (n, 1))
        return self.filler[(start + np.arange(length)) % len(self.filler)].astype(np.int64)

    def values_of(self, random: np.random.Generator, keys: np.ndarray) -> np.ndarray:
        """A value for each name: indices into `keys` of any shape → ids of that shape."""
        chosen = random.integers(0, self.family or len(self.values), keys.shape)
        return self.values[chosen + self.family * keys]

    def choices_of(self, keys: np.ndarray) -> np.ndarray:
        """The possible values of each name, equally likely: indices [Q] → ids [Q, n]."""
        if not self.family:
            return np.broadcast_to(self.values, (len(keys), len(self.values)))
        return self.values.reshape(-1, self.family)[keys]


def _is_word(data: bytes) -> bool:
    """Whether the bytes are a space and at least three lower-case ASCII letters."""
    return data[:1] == b" " and data[1:].isalpha() and data[1:].islower() and len(data) > 3


def distinct(random: np.random.Generator, count: int, n: int, length: int) -> np.ndarray:
    """`length` distinct numbers below `count` for each of n rows: [n, length].

    Raises:
        ValueError: `length` exceeds `count`.
    """
    if length > count:
        raise ValueError(f"{length} different ids are needed; the alphabet has {count}")
    return random.permuted(np.broadcast_to(np.arange(count), (n, count)), axis=1)[:, :length]
