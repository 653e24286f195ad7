"""Functions that a row offers are laid out as servers lay them out for a chat template."""

from __future__ import annotations

from workbench.data.turns import tools_of


def test_functions_have_the_keys_and_the_order_that_servers_give_to_a_template() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}}
    given = {"parameters": parameters, "strict": True, "name": "f"}
    for layout in ([{"function": given, "type": "function", "note": 1}], [given], given):
        (tool,) = tools_of(layout)
        assert list(tool)[:2] == ["type", "function"]
        assert list(tool["function"]) == ["name", "description", "parameters", "strict"]
        assert tool["function"] == given | {"description": ""}
    assert tools_of([{"function": given, "note": 1}])[0]["note"] == 1
    assert tools_of([{"name": "g"}])[0]["function"]["parameters"] == {"type": "object", "properties": {}}
