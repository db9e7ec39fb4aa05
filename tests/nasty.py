"""Names that a file can hold and nobody wants to see as they are."""

NASTY = [
    "\x1b[31mred",  # what a terminal takes as commands
    "\x1b]0;title\x07",
    "\x1b]8;;http://example.invalid\x1b\\link\x1b]8;;\x1b\\",
    "\x9b2J",
    "back\x08\x08space",
    "over\rwritten",
    "two\nlines",
    "\x00",
    "\x7f",
    "\x85next",
    "tab\tulated",
    "line\u2028break",
    "paragraph\u2029break",
    "\u202egnp.exe",  # directions
    "\u2066a\u2069",
    "\u200bzero width",
    "\ufeffmark",
    "\ud800",  # no text at all
    "a\udcff.pt",
    "\uffff",
    "\U000e0041 tag",
    "<script>alert(1)</script>",  # markup
    "]]>&lt;&amp;&",
    "--> <b>",
    "[red]bold[/red]",
    "[link=http://example.invalid]x[/link]\\",
    "[/]",
    "$",  # formulas
    r"$\frac{$",
    r"\$x^2$\\$",
    "$x_1$ and $",
    "_hidden",
    "=1+1",
    "'; DROP TABLE x; --",
    "../../etc/passwd",
    "",
    " ",
    "x" * 100_000,
    "\u0301" * 50,
    "🦄 中文 ة",
]
