"""The tokenizer's chat template: renders a conversation as the model was trained on it."""

import re
from collections.abc import Sequence
from typing import Any

from trainyard_serving.errors import one_line
from trainyard_serving.generate.engine import JsonDict, PromptError

_PLACEHOLDER = "trainyard"  # the content of an answer


class ChatTemplate:
    """A chat template; without one every conversation is refused.

    What a template never mentions it would silently leave out, so that is refused by name.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # A tokenizer may have several named templates: "default", and "tool_use" for tools.
        template = tokenizer.chat_template or {}
        self._templates = template if isinstance(template, dict) else {"default": template}
        self.exists = "default" in self._templates

    def render(
        self,
        conversation: Sequence[JsonDict],
        tools: Sequence[JsonDict] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text up to the beginning of the assistant's next message.

        Raises PromptError when there is no template, or it refuses the conversation.
        """
        if not self.exists:
            raise PromptError(
                "this model has no chat template, because it was not trained on conversations:"
                " use /v1/completions",
                "no_chat_template",
                "messages",
            )
        self._check_tools(conversation, tools)
        return self._apply(conversation, add_generation_prompt, tools)

    def end_of_turn(self) -> frozenset[int]:
        """The special token that the template adds after an answer: it ends generation.

        The generation config of a fine-tuned model often has only the base model's end of text.
        """
        if not self.exists:
            return frozenset()
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _PLACEHOLDER},
        ]
        try:
            _, _, after = self._apply(messages, add_generation_prompt=False).rpartition(
                _PLACEHOLDER
            )
        except PromptError:  # a template with other requirements: the config has to suffice
            return frozenset()
        ids = self._tokenizer(after, add_special_tokens=False)["input_ids"]
        token = self._tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
        return frozenset(ids[:1]) if token is not None and token.special else frozenset()

    def _check_tools(
        self, conversation: Sequence[JsonDict], tools: Sequence[JsonDict] | None
    ) -> None:
        # transformers chooses in this way, too.
        named = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates[named]
        checks = (
            (bool(tools), r"\btools\b", "tools", "tools"),
            (
                any("tool_calls" in message for message in conversation),
                r"\btool_calls\b",
                "tool_calls",
                "messages",
            ),
            (
                any(message["role"] == "tool" for message in conversation),
                r"""["']tool["']""",
                "messages with role tool",
                "messages",
            ),
        )
        for used, mention, what, param in checks:
            if used and not re.search(mention, template):
                message = f"{what}: this model's chat template has none: leave them out"
                raise PromptError(message, "tools_not_supported", param)

    def _apply(
        self,
        conversation: Sequence[JsonDict],
        add_generation_prompt: bool,
        tools: Sequence[JsonDict] | None = None,
    ) -> str:
        try:
            text = str(
                self._tokenizer.apply_chat_template(
                    list(conversation),
                    tools=list(tools) if tools else None,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
            text.encode()  # a lone surrogate may hide in a tool's parameters
        # A template is code that came with the model: it may raise anything.
        except Exception as error:
            message = f"the model's chat template refuses these messages: {one_line(error)}"
            raise PromptError(message, "chat_template_refused", "messages") from error
        return text
