"""The language of queries: pandas' own, without anything that could run code, read files or never end.

A query may come from a features file or a config, not only from the user. Allowed expressions mean the same as in
``pandas.DataFrame.query``, where ``&`` and ``|`` bind like ``and`` and ``or``; everything else is refused.
"""

import ast
import operator
import re
import warnings
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NoReturn

import pandas as pd

from lit_extract.common.errors import InputError, name_some, one_line
from lit_extract.common.untrusted import shorten

MAX_LENGTH = 100_000  # characters: a list of about 10,000 ids
MAX_PARTS = 1000  # names and signs, without commas: more than anyone writes, and few enough for Python's parser
MAX_DEPTH = 100  # of nested operations
MAX_INTEGER = 2**64

ALLOWED = (
    "allowed are columns (`in backticks` if need be), numbers, 'text', True, False, lists, comparisons, in, not in, "
    "and, or, not, + - * / // %, and of a column .isin([…]) .isna() .notna() .str.startswith('…') .str.endswith('…') "
    ".str.contains('…') .str.lower() .str.upper() .str.strip() .str.len()"
)

_PART = re.compile(
    r"""(?P<text>'(?:[^'\\\r\n]|\\[^\r\n])*'|"(?:[^"\\\r\n]|\\[^\r\n])*")
    |`(?P<quoted>[^`\r\n]+)`
    |(?P<number>[0-9][0-9A-Za-z_.]*)
    |(?P<word>[^\W0-9]\w*)
    |(?P<space>\s)
    |(?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)
_SIGNS = frozenset("()[]{},.+-*/%~<>=!&|")
_LIKE_WORDS = {"&": " and ", "|": " or "}
_PATTERN_SIGNS = re.compile(r"[.^$*+?{}\[\]\\|()]")  # special characters of regular expressions

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_WITHOUT_ARGUMENTS = ("isna", "notna", "str.lower", "str.upper", "str.strip", "str.len")
_WITH_TEXT = ("str.startswith", "str.endswith", "str.contains")


def evaluate(query: str, table: pd.DataFrame) -> "pd.Series[bool]":
    """Return a mask of the rows of a table that a query chooses."""
    return _Query(query, table).mask()


class _Query:
    """A query and its table.

    Values are columns of the table, values computed from them, numbers, text, and lists of numbers and text.
    """

    def __init__(self, query: str, table: pd.DataFrame) -> None:
        self.query, self.table = query, table
        self.shown = shorten(repr(query), 200)
        self.columns = f"the columns are {name_some([shorten(column) for column in table.columns], 20)}"
        self.text = ""  # the query in Python's syntax
        self.origins: list[int] = []  # place in the query of each of its characters
        self.quoted: dict[str, str] = {}  # stand-ins for names in backticks

    def mask(self) -> "pd.Series[bool]":
        """Evaluate the query."""
        self._translate()
        value = self._value(self._parse(), 0)
        if not _is_condition(value):
            # DataFrame.query would take numbers as labels and repeat rows
            raise InputError(f"data.query: {self.shown} is not true or false for each row; {self.columns}")
        return value  # type: ignore[no-any-return]

    def _refuse(self, place: int, reason: str) -> NoReturn:
        raise InputError(f"data.query: {self.shown} fails at character {place + 1}: {reason}; {self.columns}")

    def _refuse_node(self, node: ast.expr, reason: str) -> NoReturn:
        first, last = (self._place(offset) for offset in (node.col_offset, node.end_col_offset or 0))
        self._refuse(first, f"{shorten(repr(self.query[first:last].strip()))} {reason}")

    def _place(self, offset: int) -> int:
        """Return the place in the query of a node's offset, in bytes."""
        characters = len(self.text.encode()[:offset].decode(errors="ignore"))
        return self.origins[characters] if characters < len(self.origins) else len(self.query)

    def _translate(self) -> None:
        """Translate names in backticks, and ``&`` and ``|`` with their precedence, into Python."""
        if len(self.query) > MAX_LENGTH:
            raise InputError(
                f"data.query: it has {len(self.query):,} characters; the maximum is {MAX_LENGTH:,}: {self.shown}"
            )
        stand_in = "quoted"
        while stand_in in self.query:
            stand_in += "_"
        pieces: list[str] = []
        n_parts, last_end = 0, -1
        for part in _PART.finditer(self.query):
            kind, piece, place = str(part.lastgroup), part[0], part.start()
            n_parts += kind in ("word", "quoted") or (kind == "sign" and piece != ",")
            if n_parts > MAX_PARTS:
                self._refuse(place, f"up to here it has {MAX_PARTS} names and signs, the maximum")
            if kind == "sign" and piece not in _SIGNS:
                self._refuse(place, f"{shorten(repr(piece))} {_why_not(piece)}; {ALLOWED}")
            if kind == "text" and place == last_end:  # f'', b'', '''…'''
                self._refuse(place, f"text must begin with one quote and nothing before it; {ALLOWED}")
            if kind in ("text", "word", "number", "quoted"):
                last_end = part.end()
            if kind == "quoted":
                piece = f"{stand_in}{len(self.quoted)}"
                self.quoted[piece] = part["quoted"]
            piece = " " if kind == "space" else _LIKE_WORDS.get(piece, piece)
            pieces.append(piece)
            self.origins += [place] * len(piece) if len(piece) != len(part[0]) else range(place, part.end())
        whole = "".join(pieces)
        self.text = whole.lstrip()
        self.origins = self.origins[len(whole) - len(self.text) :]

    def _parse(self) -> ast.expr:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about odd text such as '\d'
                return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            place = max(0, (error.offset or 1) - 1)
            reason, place = error.msg, self.origins[place] if place < len(self.origins) else len(self.query)
        except (ValueError, MemoryError, RecursionError) as error:  # halves of surrogate pairs; too deep
            reason, place = str(error) or "it is nested too deeply", 0
        return self._refuse(place, f"{shorten(reason)}; {ALLOWED}")

    def _value(self, node: ast.expr, depth: int) -> Any:
        if depth > MAX_DEPTH:
            self._refuse_node(node, f"is nested more than {MAX_DEPTH} levels deep")
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return self._in_range(node, value)
            case ast.Name(id=name):
                return self._column(node, self.quoted.get(name, name))
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return self._list(items, depth)
            case ast.BoolOp(op=op, values=parts):
                conditions = [self._condition(part, depth) for part in parts]
                return reduce(operator.and_ if isinstance(op, ast.And) else operator.or_, conditions)
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
                return ~self._condition(operand, depth)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._apply(node, operator.neg, self._number(operand, depth))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                values = self._number(left, depth), self._number(right, depth)
                return self._in_range(node, self._apply(node, _ARITHMETIC[type(op)], *values))
            case ast.Compare():
                return self._comparison(node, depth)
            case ast.Call(func=ast.Attribute(value=ast.Attribute(value=of, attr="str"), attr=name)):
                return self._call(node, f"str.{name}", of, depth)
            case ast.Call(func=ast.Attribute(value=of, attr=name)):
                return self._call(node, name, of, depth)
        return self._refuse_node(node, f"is not allowed; {ALLOWED}")

    def _in_range(self, node: ast.expr, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= MAX_INTEGER:
            self._refuse_node(node, "is an integer of more than 64 bits")
        return value

    def _column(self, node: ast.expr, name: str) -> "pd.Series[Any]":
        column = self.table[name] if name in self.table.columns else None
        if column is None and name == "index":  # as in pandas: the row number
            column = self.table.index.to_series()
        if not isinstance(column, pd.Series):
            self._refuse_node(node, "is not a column")
        return column

    def _list(self, items: list[ast.expr], depth: int) -> list[Any]:
        values = [self._value(item, depth + 1) for item in items]
        for item, value in zip(items, values, strict=True):
            if not isinstance(value, bool | int | float | str):
                self._refuse_node(item, "is in a list, where only numbers, text, True and False are allowed")
        return values

    def _condition(self, node: ast.expr, depth: int) -> Any:
        value = self._value(node, depth + 1)
        if not _is_condition(value):
            self._refuse_node(node, "is not true or false for each row, which and, or, not, &, | and ~ need")
        return value

    def _number(self, node: ast.expr, depth: int) -> Any:
        value = self._value(node, depth + 1)
        is_number = (
            pd.api.types.is_numeric_dtype(value) if isinstance(value, pd.Series) else type(value) in (int, float)
        )
        if not is_number or _is_condition(value):
            self._refuse_node(node, "is neither a number nor a column of numbers, which arithmetic needs")
        return value

    def _comparison(self, node: ast.Compare, depth: int) -> Any:
        """Evaluate a chain of comparisons, which is true where all of them are."""
        values = [self._value(part, depth + 1) for part in (node.left, *node.comparators)]
        return reduce(operator.and_, map(partial(self._compare, node), node.ops, values, values[1:]))

    def _compare(self, node: ast.Compare, op: ast.cmpop, left: Any, right: Any) -> Any:
        is_equality, is_in = isinstance(op, ast.Eq | ast.NotEq), isinstance(op, ast.In | ast.NotIn)
        if is_equality and isinstance(left, str):
            left, right = right, left
        if is_equality and isinstance(right, str):  # as pandas does: missing text is not the text
            right = [right]
        if isinstance(left, pd.Series) and isinstance(right, list) and (is_equality or is_in):
            found = self._apply(node, left.isin, right)
            return ~found if isinstance(op, ast.NotEq | ast.NotIn) else found
        has_column = isinstance(left, pd.Series) or isinstance(right, pd.Series)
        if has_column and type(op) in _COMPARISONS and not isinstance(left, list) and not isinstance(right, list):
            return self._apply(node, _COMPARISONS[type(op)], left, right)
        hint = "give a column"
        if is_in:
            hint = "in needs a column on its left and a list on its right; to find text: column.str.contains('text')"
        return self._refuse_node(node, f"is not a valid comparison of a column: {hint}; {ALLOWED}")

    def _call(self, node: ast.Call, name: str, of: ast.expr, depth: int) -> Any:
        known = name in (*_WITHOUT_ARGUMENTS, *_WITH_TEXT, "isin")
        column = self._value(of, depth + 1) if known else None
        if not isinstance(column, pd.Series):
            self._refuse_node(node, f"is not allowed; {ALLOWED}")
        arguments = [self._value(argument, depth + 1) for argument in node.args]
        wanted: list[type] = [str] if name in _WITH_TEXT else [list] if name == "isin" else []
        settings = {str(keyword.arg): keyword.value for keyword in node.keywords}
        known_settings = {"regex"} if name == "str.contains" else set()
        if [type(argument) for argument in arguments] != wanted or settings.keys() - known_settings:
            self._refuse_node(node, f"has invalid arguments; {ALLOWED}")
        if name == "str.contains":  # literal text only: some regular expressions never end
            regex = settings.get("regex")
            is_plain = isinstance(regex, ast.Constant) and regex.value is False
            if not is_plain and (regex is not None or _PATTERN_SIGNS.search(arguments[0])):
                self._refuse_node(
                    node,
                    "would be a regular expression, which is not allowed; to find the literal text, add regex=False; "
                    "join several texts with or",
                )
            return self._apply(node, lambda: column.str.contains(arguments[0], regex=False))
        return self._apply(node, lambda: operator.attrgetter(name)(column)(*arguments))

    def _apply(self, node: ast.expr, function: Callable[..., Any], *values: Any) -> Any:
        try:
            return function(*values)
        except Exception as error:  # pandas raises many errors for incompatible types
            self._refuse_node(node, f"can't be computed: {shorten(one_line(error), 200)}")


def _is_condition(value: object) -> bool:
    return isinstance(value, pd.Series) and pd.api.types.is_bool_dtype(value)


def _why_not(sign: str) -> str:
    if sign in "'\"`":
        return "begins something that does not end"
    return "is for Python's variables, which a query can't see" if sign == "@" else "is not allowed"
