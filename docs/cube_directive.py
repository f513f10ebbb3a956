"""The directive `cube`: the picture of a shape and its kept axes, drawn by `keepnorm.explain` when the site is built."""

from html import escape

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

from keepnorm.explain.cube import left_out
from keepnorm.explain.explanation import explain


class Cube(SphinxDirective):
    """```{cube} (32, 3, 224, 224), keep=1``` with the arguments of `explain`; the options name the axes and add a caption."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"names": directives.unchanged, "caption": directives.unchanged}  # noqa: RUF012, as docutils reads it

    def run(self):
        call = compile(f"explain({self.arguments[0]})", self.env.docname, "eval")
        explanation = eval(call, {"explain": explain})  # the text of our own pages
        names = tuple(self.options.get("names", "").split()) or explanation.names
        said = f"Values of one colour share a mean and a variance. {left_out(explanation.axes)}"
        caption = self.options.get("caption", said)
        picture = f'<div class="cube">{explanation.svg(names)}<p>{escape(caption)}</p></div>'
        return [nodes.raw("", picture, format="html")]


def setup(app):
    app.add_directive("cube", Cube)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
