"""``apply_template``: a chat as the text that the model's chat template makes of it, as llama.cpp's server has it."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.generation.checks import chat_messages, check_chat_chars
from handlers.generation.tools import told_tools
from handlers.schemas.parsing import parse
from handlers.schemas.tokens import ApplyTemplateRequest


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a chat as text; fields as in ``ApplyTemplateRequest`` and ``ApplyTemplateResponse``.

    Raises:
        InvalidRequest: a limit is exceeded, or the template refuses the messages.
        ServiceError: errors of ``Models.lease``.
    """
    request = parse(ApplyTemplateRequest, payload)
    messages = chat_messages(request.messages)
    check_chat_chars(messages, request.functions, ctx)
    async with ctx.models.lease(request.model) as engine:
        tools, options = told_tools(request.functions), request.template_options()
        return {"prompt": await engine.render_chat(messages, tools=tools, options=options, background=ctx.background)}
