"""A chat template of Ollama, in the language of Go's `text/template`.

It runs over `.Messages`, so that conversations have all their turns. The language has no function
for white space at the ends of a text, but templates that call themselves, which drop it character
by character.
"""

from __future__ import annotations

from alpaca_rlhf.exporting.chat_pieces import ChatPieces, Trim


def go_template(pieces: ChatPieces) -> str:
    """Build a template of Ollama from the pieces of a chat template."""
    system = pieces.system
    trims = [system.trim, system.question_trim, pieces.question_trim, pieces.reply_trim]
    names = {trim: f"trim{number}" for number, trim in enumerate(dict.fromkeys(trims), 1)}
    names.pop(Trim(), None)

    def content(trim: Trim, value: str = ".Content") -> str:
        return f'{{{{- template "{names[trim]}" {value} }}}}' if trim in names else _action(value)

    # 1. The system text: Ollama joins all system messages in `.System`; other programs that render
    #    its templates may give the messages alone.
    head = (
        '{{- $system := "" }}{{- if .System }}{{- $system = .System }}{{- else }}'
        '{{- range .Messages }}{{- if eq .Role "system" }}{{- $system = .Content }}{{- end }}'
        "{{- end }}{{- end }}"
    )
    # 2. A question, with the system text before the first one or the last one.
    plain = f"{_either('$turn', pieces.later, pieces.first)}{content(pieces.question_trim)}"
    carried = (
        f"{_either('$turn', system.later_before, system.first_before)}"
        f"{content(system.trim, '$system')}{_text(system.after)}{content(system.question_trim)}"
    )
    carries = "$last" if system.last else "(not $turn)"
    question = f"{{{{- if and $system {carries} }}}}{carried}{{{{- else }}}}{plain}{{{{- end }}}}"
    # 3. All turns. `range` gives no count of questions, so `$turn` tells the first from later ones.
    last = "{{- $last := eq (len (slice $.Messages $index)) 1 }}" if system.last else ""
    turns = (
        "{{- $turn := false }}{{- $waiting := false }}"
        f"{{{{- range $index, $message := .Messages }}}}{last}"
        f'{{{{- if eq .Role "user" }}}}{question}'
        "{{- $turn = true }}{{- $waiting = true }}"
        f'{{{{- else if eq .Role "assistant" }}}}{_text(pieces.reply)}{content(pieces.reply_trim)}'
        "{{- $waiting = false }}{{- end }}{{- end }}"
        f"{{{{- if $waiting }}}}{_text(pieces.prompt)}{{{{- end }}}}"
    )
    return "".join(_definitions(trim, name) for trim, name in names.items()) + head + turns


def go_string(text: str) -> str:
    r"""Quote a text for Go.

    What cannot be seen is written as `\u....`: Ollama's reader of Modelfiles leaves it out.
    """
    quoted = []
    for character in text:
        code = ord(character)
        if character in '"\\':
            quoted.append(f"\\{character}")
        elif character == "\n":
            quoted.append("\\n")
        elif code > 0xFFFF:
            quoted.append(f"\\U{code:08x}")
        else:
            quoted.append(character if character.isprintable() else f"\\u{code:04x}")
    return f'"{"".join(quoted)}"'


def _definitions(trim: Trim, name: str) -> str:
    """Define a template that writes a text without the white space at its ends."""
    end = f"{name}end"
    write = f'{{{{- template "{end}" . }}}}' if trim.right else _action(".")
    definitions = _loop(name, trim.left, "(slice . 0 {0})", "(slice . {0})", write)
    if trim.right:
        # The last N bytes, and all before them: the length less N is that of a slice.
        tail, before = "(slice . (len (slice . {0})))", "(slice . 0 (len (slice . {0})))"
        definitions += _loop(end, trim.right, tail, before, _action("."))
    return definitions


def _loop(name: str, characters: str, part: str, rest: str, write: str) -> str:
    """Define a template that calls itself with the rest while a part is one of the characters."""
    text = ""
    for size in (1, 2, 3):
        dropped = [character for character in characters if len(character.encode()) == size]
        if dropped:
            quoted = " ".join(go_string(character) for character in dropped)
            text += (
                f"{{{{- {'else if' if text else 'if'} and (ge (len .) {size}) "
                f"(eq {part.format(size)} {quoted}) }}}}"
                f'{{{{- template "{name}" {rest.format(size)} }}}}'
            )
    body = f"{text}{{{{- else }}}}{write}{{{{- end }}}}" if text else write
    return f'{{{{- define "{name}" }}}}{body}{{{{- end }}}}'


def _either(condition: str, yes: str, no: str) -> str:
    """One of two texts."""
    if yes == no:
        return _text(yes)
    return f"{{{{- if {condition} }}}}{_text(yes)}{{{{- else }}}}{_text(no)}{{{{- end }}}}"


def _text(text: str) -> str:
    """Write a text by an action, so that white space in it is not trimmed."""
    return _action(go_string(text)) if text else ""


def _action(value: str) -> str:
    return f"{{{{- {value} }}}}"
