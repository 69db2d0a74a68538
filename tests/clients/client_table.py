"""The clients that ``test_environments.py`` runs against the service, each with its pinned packages and its cases.

A client's cases are the script ``environments/NAME_cases.py``, or ``.mjs`` for Node. ``docs/clients.md`` has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256


@dataclass(frozen=True)
class Client:
    """A client of the service.

    Args:
        name: the name of its script and environment.
        title: its name in the documentation.
        packages: its packages, pinned; the first is the one whose version the documentation shows.
        cases: the number of cases in its script.
        failing: cases that fail, and the reason.
        node: whether the packages are Node's.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    cases: int
    failing: Mapping[str, str] = field(default_factory=dict)
    node: bool = False

    @property
    def version(self) -> str:
        """The version of its first package."""
        return self.packages[0].replace("==", "@").rpartition("@")[2]

    @property
    def folder(self) -> str:
        """The name of its environment, another one for other packages."""
        return f"{self.name}-{sha256(' '.join(self.packages).encode()).hexdigest()[:12]}"

    @property
    def row(self) -> str:
        """Its row in the documentation's table."""
        reasons = "; ".join(f"`{case}`: {reason}" for case, reason in self.failing.items())
        cells = (self.title, self.version, self.cases, self.cases - len(self.failing), reasons)
        return f"| {' | '.join(map(str, cells))} |"


_OPENAI = "openai==3.57.0"
_ANTHROPIC = "anthropic==2.14.0"
_ZOD = "zod@4.6.7"

CLIENTS = (
    Client("agents", "OpenAI Agents SDK", ("openai-agents==0.24.0", _OPENAI), 24),
    Client("agno", "Agno", ("agno==3.1.10", _OPENAI), 6),
    Client("aisuite", "aisuite", ("aisuite[openai]==0.2.0",), 5),
    Client("autogen", "AutoGen", ("autogen-agentchat==0.7.5", "autogen-ext[openai]==0.7.5", _OPENAI), 15),
    Client("cohere", "Cohere", ("cohere==7.3.1",), 4),
    Client("dspy", "DSPy", ("dspy==3.4.1", _OPENAI), 13),
    Client("haystack", "Haystack", ("haystack-ai==3.4.1", _OPENAI), 19),
    Client("instructor", "Instructor", ("instructor==1.17.0", _ANTHROPIC), 26),
    Client(
        "langchain",
        "LangChain, LangGraph",
        (
            "langchain==1.5.2",
            "langchain-openai==1.7.4",
            "langchain-anthropic==1.7.10",
            "langgraph==1.2.24",
            _OPENAI,
            _ANTHROPIC,
            "numpy==2.4.6",  # its vector store in memory
        ),
        54,
    ),
    Client("langchain_ollama", "LangChain with Ollama's API", ("langchain-ollama==1.1.0", "numpy==2.4.6"), 13),
    Client("litellm", "LiteLLM", ("litellm==1.110.2", _OPENAI), 34),
    Client(
        "llama_index",
        "LlamaIndex",
        (
            "llama-index-core==0.14.25",
            "llama-index-llms-openai-like==0.8.1",
            "llama-index-embeddings-openai-like==0.4.0",
        ),
        18,
    ),
    Client("llm", "llm", ("llm==0.36", _OPENAI), 10),
    Client("lm_eval", "lm-evaluation-harness", ("lm_eval[api]==0.4.13",), 7),
    Client("magentic", "Magentic", ("magentic==0.41.1", _OPENAI), 7),
    Client("mirascope", "Mirascope", ("mirascope[openai]==2.8.2",), 6),
    Client(
        "outlines",
        "Outlines",
        ("outlines[openai]==1.3.3", _OPENAI),
        13,
        {"sglang_regex": "`regex` is SGLang's own field, refused by name; `from_vllm` does the same"},
    ),
    Client("pydantic_ai", "Pydantic AI", ("pydantic-ai-slim[openai,anthropic]==2.68.0", _OPENAI, _ANTHROPIC), 33),
    Client("semantic_kernel", "Semantic Kernel", ("semantic-kernel==1.45.0", _OPENAI), 13),
    Client("smolagents", "smolagents", ("smolagents[openai]==1.26.0", _OPENAI), 12),
    Client("strands", "Strands Agents", ("strands-agents[openai]==1.62.0",), 7),
    Client("openai_node", "OpenAI for Node", ("openai@7.59.0", _ZOD), 19, node=True),
    Client("anthropic_node", "Anthropic for Node", ("@anthropic-ai/sdk@1.14.0", _ZOD), 11, node=True),
    Client("ollama_node", "Ollama for Node", ("ollama@0.6.4",), 10, node=True),
    Client(
        "ai_sdk",
        "Vercel AI SDK",
        ("ai@7.0.173", "@ai-sdk/openai@4.0.118", "@ai-sdk/openai-compatible@3.0.92", "@ai-sdk/anthropic@4.0.105", _ZOD),
        34,
        node=True,
    ),
    Client(
        "langchain_node",
        "LangChain for Node",
        ("langchain@1.5.14", "@langchain/core@1.4.0", "@langchain/openai@1.6.0", "@langchain/langgraph@1.7.3", _ZOD),
        11,
        node=True,
    ),
    Client(
        "agents_node", "OpenAI Agents SDK for Node", ("@openai/agents@0.20.0", "openai@6.49.0", _ZOD), 13, node=True
    ),
    Client(
        "llamaindex_node", "LlamaIndex for Node", ("llamaindex@0.12.1", "@llamaindex/openai@0.4.23", _ZOD), 5, node=True
    ),
)
