"""The tokenizer's own chat template: a conversation as the text the model was trained on."""

from collections.abc import Sequence
from typing import Any

from trainyard_serving.generate.completion import PromptError

Turn = dict[str, str]  # role and content

_MARK = "trainyard"  # stands for an answer's text


class ChatTemplate:
    """Renders conversations. A tokenizer without a template refuses all of them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Several named templates are possible; the unnamed use is the one called default.
        template = tokenizer.chat_template
        self.exists = "default" in template if isinstance(template, dict) else bool(template)

    def render(self, conversation: Sequence[Turn]) -> str:
        """The text up to where the assistant's next turn begins.

        Raises PromptError when there is no template, or it refuses the conversation.
        """
        if not self.exists:
            raise PromptError(
                "this model has no chat template, it was not made for conversations:"
                " use /v1/completions",
                "no_chat_template",
            )
        return self._apply(conversation, add_generation_prompt=True)

    def end_of_turn(self) -> frozenset[int]:
        """The special token that the template writes after an answer: the model's last one.

        Generation settings of fine-tuned models often name only the base model's end of text.
        """
        if not self.exists:
            return frozenset()
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        try:
            _, _, after = self._apply(turns, add_generation_prompt=False).rpartition(_MARK)
        except PromptError:  # a template with a taste of its own: the settings must do
            return frozenset()
        ids = self._tokenizer(after, add_special_tokens=False)["input_ids"]
        token = self._tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
        return frozenset(ids[:1]) if token is not None and token.special else frozenset()

    def _apply(self, conversation: Sequence[Turn], add_generation_prompt: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(conversation), tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        # The template is the model's own code: it may raise anything, for itself or for a mistake.
        except Exception as error:
            why = " ".join(str(error).split())[:300] or type(error).__name__
            raise PromptError(
                f"the model's chat template refuses these messages: {why}", "chat_template_refused"
            ) from error
