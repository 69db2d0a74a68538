"""``classify``: the classes of texts, in the form of vLLM's classification API."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.encoding.encode import encode, usage_object
from handlers.encoding.inputs import Inputs, Item, chosen_prompt, encoder_info, is_list_of_inputs
from handlers.encoding.vectors import scores
from handlers.schemas.parsing import parse
from handlers.schemas.relevance import ClassifyRequest


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the classes of texts; fields as in ``ClassifyRequest`` and ``ClassifyResponse``.

    Raises:
        InvalidRequest: a limit is exceeded, or the model has no classes.
        ServiceError: other errors of ``Models.lease``, ``Encoder.classify`` and ``Context.reserve``.
    """
    request = parse(ClassifyRequest, payload)
    async with ctx.models.lease(request.model) as engine:
        info = encoder_info(engine.info, "classify")
        items: list[Item] = [item if isinstance(item, str) else tuple(item) for item in request.input]
        listed = is_list_of_inputs(payload["input"])
        inputs = Inputs(items, "input", listed, chosen_prompt(None, None, info), *request.cut(info.max_tokens))
        encoded = await encode(engine, "classify", inputs, ctx, request.cache_control)
        activation = info.activation if request.use_activation else "none"
        data = []
        for index, logits in enumerate(encoded.values):
            probabilities = scores(logits.tolist(), activation)
            best = probabilities.index(max(probabilities))
            label = info.labels[best] if info.labels else f"LABEL_{best}"
            data.append({"index": index, "label": label, "probs": probabilities, "num_classes": len(probabilities)})
        return {
            "id": f"classify-{ctx.new_id()}",
            "object": "list",
            "created": int(ctx.clock.time()),
            "model": engine.info.name,
            "data": data,
            "usage": usage_object(encoded.usage),
        }
