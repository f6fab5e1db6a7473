"""The commands in the documents' shell blocks, as a shell would take them apart.

Knows comments, continued lines, quotes and pipes. Knows none of the commands.
"""

import re
import shlex
from dataclasses import dataclass

from tests.docs.pages import Block, blocks

COMMENT = re.compile(r"(?:^|\s)#.*$")
SEPARATORS = {"|", "||", "&&", ";", "<", ">", ">>"}
ASSIGNMENT = re.compile(r"[A-Z_]+=.*", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One line of a block with those that continue it, without its comment."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def calls(self) -> list[list[str]]:
        """The words of each program that it starts, without assignments in front and redirections."""
        calls: list[list[str]] = [[]]
        skipped = False
        for word in words_of(self.text):
            if word in SEPARATORS:
                if word in ("<", ">", ">>"):
                    skipped = True
                else:
                    calls.append([])
            elif skipped:
                skipped = False  # a file's name
            elif calls[-1] or not ASSIGNMENT.fullmatch(word):
                calls[-1].append(word)
        return calls


def words_of(text: str) -> list[str]:
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="|;<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    return list(lexer)


def is_whole(text: str) -> bool:
    if text.endswith("\\"):
        return False
    try:
        words_of(text)
    except ValueError:  # a quotation is open
        return False
    return True


def commands_of(block: Block) -> list[Command]:
    commands, begun = [], ""
    for number, line in enumerate(block.code.splitlines(), start=block.line):
        if not begun:
            first = number
        text = begun + line
        if not is_whole(COMMENT.sub("", text)):
            begun = text + "\n"
            continue
        begun = ""
        if command := COMMENT.sub("", text).strip():
            commands.append(Command(block.page, first, command))
    assert not begun, f"{block.page}:{first}: {begun!r} is never ended"
    return commands


COMMANDS = [command for block in blocks("sh") for command in commands_of(block)]
