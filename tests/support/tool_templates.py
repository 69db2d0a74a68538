"""Chat templates that know tools, in the style of the main model families, each reduced to how it reads them."""

from __future__ import annotations

_LOOP = "{% for message in messages %}"
_END = "{% endfor %}"

TOOL_TEMPLATES = {
    "hermes": "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "# Tools{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n"
    '{{ "<tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <object>}\\n</tool_call>" }}<|im_end|>\n{% endif %}'
    + _LOOP
    + "{% if message.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ message.content }}\n</tool_response><|im_end|>\n"
    "{% elif message.role == 'assistant' and message.tool_calls %}<|im_start|>assistant\n{{ message.content }}"
    "{% for call in message.tool_calls %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}"
    "<|im_end|>\n{% elif not (tools and loop.first and message.role == 'system') %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}" + _END + "<|im_start|>assistant\n",
    "llama3": "{% if tools is not none %}<|start_header_id|>system<|end_header_id|>\n\n"
    """{{ 'Respond in the format {"name": function name, "parameters": dictionary}.' }}"""
    "{% for t in tools %}\n{{ t | tojson(indent=4) }}{% endfor %}<|eot_id|>{% endif %}" + _LOOP + "{% if not "
    "(message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>"
    "{% elif 'tool_calls' in message %}{% if message.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "{% set call = message.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{{ \'{"name": "\' + call.name + \'", "parameters": \' }}{{ call.arguments | tojson }}{{ "}" }}<|eot_id|>'
    "{% else %}<|start_header_id|>ipython<|end_header_id|>\n\n{{ message.content | tojson }}<|eot_id|>{% endif %}"
    + _END
    + "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "{% if tools %}[AVAILABLE_TOOLS][{% for tool in tools %}{{ tool | tojson }}"
    "{% if not loop.last %}, {% endif %}"
    "{% endfor %}][/AVAILABLE_TOOLS]{% endif %}" + _LOOP + "{% if message.role == 'user' %}[INST]{{ message.content }}"
    "[/INST]{% elif message.role == 'system' %}[INST]{{ message.content }}[/INST]{% elif message.tool_calls %}"
    "{{ '[TOOL_CALLS][' }}{% for call in message.tool_calls %}{% if call.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "{{ call.function | tojson }}{% endfor %}{{ ']</s>' }}{% elif message.role == 'tool' %}"
    '[TOOL_RESULTS]{"content": {{ message.content }}, "call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% else %}{{ message.content }}</s>{% endif %}" + _END,
    "granite": "{% if tools %}<|start_of_role|>available_tools<|end_of_role|>{{ tools | tojson(indent=4) }}"
    "<|end_of_text|>\n"
    "<|start_of_role|>system<|end_of_role|>Write <|tool_call|> and a JSON list of calls.<|end_of_text|>\n{% endif %}"
    + _LOOP
    + "<|start_of_role|>{{ message.role }}<|end_of_role|>{{ message.content }}<|end_of_text|>\n"
    + _END
    + "<|start_of_role|>assistant<|end_of_role|>",
    "phi4": _LOOP + "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|><|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
    + _END
    + "<|assistant|>",
    "lfm2": "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "<|im_start|>system\n{{ system }}"
    "{% if tools %}List of tools: <|tool_list_start|>[{% for tool in tools %}{{ tool | tojson }}{% endfor %}]"
    "<|tool_list_end|>"
    "{% endif %}<|im_end|>\n" + _LOOP + "{% if message.role == 'tool' %}<|im_start|>tool\n<|tool_response_start|>"
    "{{ message.content }}<|tool_response_end|><|im_end|>\n{% elif message.role != 'system' %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}" + _END + "<|im_start|>assistant\n",
}
"""By the name of the syntax; Granite's, Phi-4's and LFM2's do not write calls of earlier messages."""

_TOKENS = (
    "<|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|python_tag|> [TOOL_CALLS] "
    "[INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [ARGS] "
    "<|start_of_role|> <|end_of_role|> <|end_of_text|> <|tool_call|> <|/tool_call|> <|tool|> <|/tool|> "
    "<|system|> <|user|> <|assistant|> <|end|> <|tool_list_start|> <|tool_list_end|> <|tool_call_start|> "
    "<|tool_call_end|> <|tool_response_start|> <|tool_response_end|>"
)
TOOL_TOKENS = tuple(_TOKENS.split())
"""The control tokens of these templates."""
