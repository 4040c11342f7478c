"""Redact command lines: of a shell, of virsh, of QEMU and its monitor."""

from __future__ import annotations

import re
import shlex

from virtrace.bundle import words
from virtrace.bundle.pseudonyms import KINDS
from virtrace.bundle.redact.context import DEEPEST, Context, TextRedactor
from virtrace.bundle.redact.harmless import are_words
from virtrace.bundle.redact.kinds import ARGUMENTS, kind_of_key
from virtrace.bundle.redact.paths import redact_path
from virtrace.bundle.redact.places import redact_place
from virtrace.bundle.redact.shapes import COMMON_NAME, FLAGS, PLACEHOLDERS, PROGRAMS, TARGET


def redact_command(redactor: TextRedactor, text: str, context: Context) -> str:
    """One command, or several with separators between them."""
    commands = re.split(r"(;|&&|\|\||\||\n)", text)
    try:
        split = [shlex.split(command) if command.strip() else [] for command in commands[::2]]
    except ValueError:
        # A quoted word contains a separator, or has no end.
        try:
            split, commands = [shlex.split(text)], [text]
        except ValueError:
            return redactor.names.add("text", text)
    parts: list[str] = []
    for number, argv in enumerate(split):
        original = commands[2 * number]
        program = argv[0].rpartition("/")[2] if argv else ""
        # QEMU's options have values of its own; the words of any other program are names.
        strict = not program.startswith(("-", "qemu-system-", "kvm")) and "=" not in program
        redacted = shlex.join(redact_arguments(redactor, argv, context, strict=strict))
        ends = bool(argv) and original[-1:].isspace()
        parts += [" " * original[:1].isspace(), redacted, " " * ends]
        parts += commands[2 * number + 1 : 2 * number + 2]
    return "".join(parts)


def redact_arguments(
    redactor: TextRedactor, argv: list[str], context: Context, *, strict: bool
) -> list[str]:
    """The words of one command.

    strict: even an everyday word may be a name, unless it is a command's.
    """
    redacted: list[str] = []
    before, program, follow = "", "", list[str]()
    verb = True
    for word in argv:
        if word.rpartition("/")[2] in PROGRAMS:
            program, verb = word.rpartition("/")[2], True
        kind = follow.pop(0) if follow and not word.startswith("-") else ""
        option = before.lstrip("-") if before.startswith("-") else ""
        if kind == "" and option and kind_of_key(option) in KINDS:
            kind = option
        if kind and kind != "untyped":
            redacted.append(redactor.text(word, kind, context))
            follow = follow or ([kind] if kind == "secret" else [])
        elif before in ("-c", "--connect") and program == "virsh":
            redacted.append(redact_place(redactor, word, context))
        else:
            reader = _Word(redactor, context, before, verb, strict and not kind)
            redacted.append(reader.redacted(word))
            if verb and word in ARGUMENTS:
                follow = list(ARGUMENTS[word])
            # virsh has options of its own before its command.
            verb = bool(program) and verb and word.startswith("-")
            verb = verb or word.rpartition("/")[2] in PROGRAMS
        before = word
    return redacted


class _Word:
    """Redacts one word of a command line whose place does not say what it is."""

    def __init__(
        self, redactor: TextRedactor, context: Context, before: str, verb: bool, strict: bool
    ) -> None:
        """before: the word before it. verb: whether a program or its command can be here."""
        self._redactor = redactor
        self._context = context
        self._before = before
        self._verb = verb
        self._strict = strict

    def redacted(self, word: str) -> str:
        names = self._redactor.names
        if not word:
            return word
        if word.count("=") > DEEPEST:
            return names.add("text", word)
        folder, slash, name = word.rpartition("/")
        if self._is_program(word, name):
            return redact_path(names, folder) + slash + name if slash else name
        if word.startswith("-"):
            return self._option(word)
        if " " in word and (self._before == "-c" or self._strict):
            return redact_command(self._redactor, word, self._context)
        structured = self._redactor.structured(word, self._context)
        if structured is not None:
            return structured
        if "=" in word:
            return self._pairs(word)
        if TARGET.fullmatch(word) or word in PLACEHOLDERS or (word in FLAGS and not self._strict):
            return word
        if self._strict and not (self._verb and words.is_name(word)):
            return self._redactor.unknown(word, self._context)
        return self._redactor.name(word, self._context)

    def _is_program(self, word: str, name: str) -> bool:
        possible = self._verb or word in PROGRAMS
        return possible and (name in PROGRAMS or COMMON_NAME.fullmatch(name) is not None)

    def _option(self, word: str) -> str:
        option, equals, value = word.partition("=")
        if not are_words(re.split("-+", option.strip("-"))):
            option = "--" + self._redactor.names.add("text", option.lstrip("-"))
        if not equals:
            return option
        key = option.lstrip("-")
        if kind_of_key(key) in KINDS:
            return option + equals + self._redactor.text(value, key, self._context)
        reader = _Word(self._redactor, self._context, option, False, self._strict)
        return option + equals + reader.redacted(value)

    def _pairs(self, text: str) -> str:
        """``guest=vm1,debug-threads=on``, ``virtio-blk-pci,id=d0``; ``,,`` is a comma."""
        context = self._context.keys(of_c=False)
        redacted = []
        for pair in re.split(r"(?<!,),(?!,)", text):
            key, equals, value = pair.partition("=")
            if not equals:
                redacted.append(self._redactor.text(pair, "id", context))
                continue
            name = key.rpartition(".")[2]
            value = self._redactor.text(value.replace(",,", ","), name, context)
            redacted.append(self._redactor.key(key, context) + equals + value.replace(",", ",,"))
        return ",".join(redacted)
