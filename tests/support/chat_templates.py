"""Chat templates in the style of the main model families, each reduced to the way it reads messages."""

from __future__ import annotations

from tests.support.models import CHATML

_LOOP = "{% for m in messages %}"
_THINKING = (  # how Qwen 3 removes the reasoning of earlier turns
    "{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{% set text = m.content.split('</think>')[-1].lstrip('\\n') %}{% else %}{% set text = m.content %}{% endif %}"
)
_FIRST_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
)
_ALTERNATE = (
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)

FAMILIES = {
    "ChatML": CHATML,
    "Llama 2": _FIRST_SYSTEM + _ALTERNATE + "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system %}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ m['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}",
    "Llama 3": _LOOP + "{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
    "Llama Guard 3": "{{ bos_token }}{% for m in messages %}{{ m['role'] | capitalize }}: "
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% "
    "endfor %}\n\n"
    "{% endfor %}{% if messages[-1]['content'][0]['text'] %}Assess.{% endif %}",
    "Mistral": _FIRST_SYSTEM + _ALTERNATE + "{% if m['role'] == 'user' %}{{ '[INST]' }}"
    "{% if loop.last and system %}{{ system + '\n\n' }}{% endif %}{{ m['content'] + '[/INST]' }}"
    "{% else %}{{ m['content'] | trim + eos_token }}{% endif %}{% endfor %}",
    "Gemma 2": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}"
    "{% endif %}" + _LOOP + "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{{ '<start_of_turn>model\n' }}",
    "Gemma 3": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% if messages[0]['content'] is string %}{% set prefix = messages[0]['content'] + '\n\n' %}{% else %}"
    "{% set prefix = messages[0]['content'][0]['text'] + '\n\n' %}{% endif %}{% else %}{% set rest = messages %}"
    "{% set prefix = '' %}{% endif %}" + _ALTERNATE + "{{ '<start_of_turn>' + m['role'] + '\n' "
    "+ (prefix if loop.first else '') }}{% if m['content'] is string %}{{ m['content'] | trim }}"
    "{% elif m['content'] is iterable %}{% for item in m['content'] %}{{ item['text'] | trim }}{% endfor %}{% "
    "endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}",
    "Phi-3": _LOOP + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}{{ '<|assistant|>\n' }}",
    "Qwen 2.5": "{% if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\n' + messages[0]['content'] + "
    "'<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}" + _LOOP + "{% if m.role == 'user' or "
    "(m.role == 'system' and not loop.first) or m.role == 'assistant' %}{{ '<|im_start|>' + m.role + '\n' + "
    "m.content "
    "+ '<|im_end|>\n' }}{% endif %}{% endfor %}",
    "Qwen 3": "{% set ns = namespace(last=0) %}{% for m in messages[::-1] %}{% if m.role == 'user' and not "
    "ns.last and not "
    "(m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
    "{% set ns.last = messages | length - loop.index0 %}{% endif %}{% endfor %}"
    + _LOOP
    + _THINKING
    + "{{ '<|im_start|>' "
    "+ m.role + '\n' }}{% if m.role == 'assistant' and loop.index > ns.last and '</think>' in m.content %}{{ "
    "'<think>\n' + "
    "m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ text + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}",
    "DeepSeek-R1": "{% set ns = namespace(system='') %}" + _LOOP + "{% if m['role'] == 'system' %}"
    "{% set ns.system = ns.system + ('\n\n' if ns.system else '') + m['content'] %}{% endif %}{% endfor %}{{ "
    "bos_token }}"
    "{{ ns.system }}" + _LOOP + "{% if m['role'] == 'user' %}{{ '<\uff5cUser\uff5c>' + m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{% set content = m['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<\uff5cAssistant\uff5c>' + content "
    "+ '<\uff5cend\u2581of\u2581sentence\uff5c>' }}{% endif %}{% endfor %}{{ '<\uff5cAssistant\uff5c><think>\\n' }}",
    "Granite": _LOOP + "{{ '<|start_of_role|>' ~ m['role'] ~ '<|end_of_role|>' ~ m['content'] ~ "
    "'<|end_of_text|>\n' }}"
    "{% endfor %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}",
    "Command-R": "{{ bos_token }}"
    + _LOOP
    + "{% if m['role'] == 'system' %}{% set kind = 'SYSTEM' %}{% elif m['role'] == "
    "'user' %}{% set kind = 'USER' %}{% else %}{% set kind = 'CHATBOT' %}{% endif %}{{ "
    "'<|START_OF_TURN_TOKEN|><|' + kind "
    "+ '_TOKEN|>' + m['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}",
    "Zephyr": _LOOP
    + "\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n{% elif m['role'] == "
    "'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n{% else %}\n{{ '<|assistant|>\n' + m['content'] "
    "+ eos_token }}\n{% endif %}\n{% endfor %}",
    "SmolLM3": _FIRST_SYSTEM
    + "{% if '/no_think' in system %}{% set mode = '/no_think' %}{% else %}{% set mode = '/think' %}"
    "{% endif %}{{ '<|im_start|>system\nReasoning Mode: ' + mode + '\n' + system.replace('/no_think', "
    "'').replace('/think', "
    "'').rstrip() + '<|im_end|>\n' }}"
    + _LOOP
    + "{% set content = m.content if m.content is string else '' %}{% if m.role "
    "== 'user' %}{{ '<|im_start|>user\n' + content + '<|im_end|>\n' }}{% elif m.role == 'assistant' %}{% "
    "generation %}{% if "
    "mode == '/think' %}{{ '<|im_start|>assistant\n' + content.lstrip('\n') + '<|im_end|>\n' }}{% else %}{{ "
    "'<|im_start|>"
    "assistant\n<think>\n\n</think>\n' + content.lstrip('\n') + '<|im_end|>\n' }}{% endif %}{% endgeneration "
    "%}{% endif %}"
    "{% endfor %}",
    "gpt-oss": "{% macro say(role, text) %}{{ '<|start|>' + role + '<|message|>' + text + '<|end|>' }}{% endmacro %}"
    + _FIRST_SYSTEM
    + "{% if system %}{{ say('developer', '# Instructions\n\n' + system) }}{% endif %}{% for m in rest %}"
    "{% if m.role == 'assistant' %}{% if '<|channel|>final' in m.content %}{{ raise_exception('channel tags "
    "in content') }}"
    "{% endif %}{{ say('assistant<|channel|>final', m.content) }}{% elif m.role == 'user' %}{{ say('user', "
    "m.content) }}"
    "{% endif %}{% endfor %}{{ '<|start|>assistant' }}",
}
