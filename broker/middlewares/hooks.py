"""Functions before and after the actions of a service, and for their errors (moleculer protocol §12.1).

    hooks = {
        "before": {"*": "check_user", "create|update*": [check_size, "log"]},
        "after": {"*": "hide_secrets"},
        "error": {"remove": "explain"},
    }

Keys are action names within the service: patterns as of events, several with `|` between; `*` stands for all. Values
are functions, methods, names of methods, or lists of these, async or not. An action has hooks of its own by
`@action(hooks={"before": …, "after": …, "error": …})`.

Before the handler: `*`, the other patterns, the action's own; each gets the context. After it: the action's own, the
patterns, `*`; each gets the context and the result, and what it returns is the result. An error, of a hook too, goes
through the action's own error hooks, the patterns', those of `*`, until one returns instead of raising. Around all else
is the `error_handler` of the broker.
"""

from collections.abc import Callable, Mapping
from typing import Any

from broker.cancellation import settle
from broker.context import Context, Next
from broker.errors import ServiceSchemaError
from broker.middlewares.base import Target, Wrap, bound
from broker.registry.patterns import matches

Hook = Callable[..., Any]

KINDS = ("before", "after", "error")


def action_hooks(call_next: Next, target: Target) -> Next:
    """Raises ServiceSchemaError for a hook that is not a function."""
    before, after, error = (_declared(kind, target) for kind in KINDS)
    if not before and not after and not error:
        return call_next

    async def run(ctx: Context) -> Any:
        for hook in before:
            await settle(hook(ctx))
        result = await call_next(ctx)
        for hook in after:
            result = await settle(hook(ctx, result))
        return result

    chain: Next = run
    for hook in error:
        chain = _rescued(chain, hook)
    return chain


def handling_errors(handler: Callable[[BaseException, Context], Any] | None) -> Wrap:
    """Every error goes to `handler`: what it returns is the result, what it raises is the error."""
    if handler is None:
        return lambda call_next, _target: call_next
    return lambda call_next, _target: _rescued(call_next, lambda ctx, error: handler(error, ctx))


def _rescued(call_next: Next, answer: Callable[[Context, Exception], Any]) -> Next:
    async def rescued(ctx: Context) -> Any:
        try:
            return await call_next(ctx)
        except Exception as error:
            origin = error.__traceback__
            try:
                return await settle(answer(ctx, error))
            except Exception as raised:
                if raised is error:  # the frame of a hook that raises it again holds it, and all that its frames hold
                    raised.__traceback__ = origin
                raise
            finally:
                del origin

    return rescued


def _declared(kind: str, target: Target) -> list[Hook]:
    """The hooks of one kind for an action, in the order in which they run."""
    own = _of_kind(target.settings.get("hooks"), kind)
    declared = _of_kind(getattr(target.instance, "hooks", None), kind)
    if not isinstance(declared, Mapping):
        raise ServiceSchemaError(f"The hooks '{kind}' of service '{target.service}' must name actions: {{'*': …}}.")
    name = str(target.settings.get("raw_name", target.name))
    fitting = [key for key in declared if key != "*" and any(matches(name, one) for one in key.split("|"))]
    by_pattern = [hook for key in fitting for hook in _hooks(declared[key], target)]
    groups = [_hooks(own, target), by_pattern, _hooks(declared.get("*"), target)]
    return [hook for group in (reversed(groups) if kind == "before" else groups) for hook in group]


def _of_kind(hooks: Any, kind: str) -> Any:
    if unknown := sorted(set(hooks or ()) - set(KINDS)):
        raise ServiceSchemaError(f"Hooks are 'before', 'after' and 'error', not {unknown[0]!r}.")
    return (hooks or {}).get(kind) or {}


def _hooks(group: Any, target: Target) -> list[Hook]:
    found = []
    for one in group if isinstance(group, list | tuple) else [group] if group else []:
        hook = bound(one, target.instance)
        if hook is None:
            raise ServiceSchemaError(
                f"A hook of action '{target.name}' is neither a function nor the name of a method: {one!r}."
            )
        found.append(hook)
    return found
