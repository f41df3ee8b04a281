"""`GET /v1/tasks/{name}/audit` against a real API process."""


def test_a_task_is_audited_for_those_who_read_everything(api, client):
    verifier = {"name": "strict-four", "kind": "regex", "config": {"pattern": "^[0-9 +]+= 4$"}}
    assert api.ask("POST", "/v1/verifiers", verifier)[0] == 201
    pins = ["four", {"name": "strict-four", "mode": "audit"}]
    assert api.ask("POST", "/v1/tasks", {"name": "audited", "verifiers": pins})[0] == 201
    for number in range(80):
        said = f"{number} + {4 - number} = 4" if number < 40 else "4"
        client.chat.completions.create(model="audited", messages=[{"role": "user", "content": said}])
    status, report, _ = api.ask("GET", "/v1/tasks/audited/audit", key="viewer")
    assert (status, report["task"], report["champion"], report["attempts"]) == (200, "audited", "", 80)
    assert [one["signal"] for one in report["findings"]] == ["divergence", "brevity", "repetition", "promotion_jump"]
    divergence = report["findings"][0]
    assert (report["suspected"], divergence["state"]) == (True, "fired")
    newest = api.ask("GET", "/v1/episodes?task=audited&limit=5")[1]["data"]
    assert divergence["examples"] == [one["id"] for one in newest]
    assert divergence["figures"]["strict-four@1"]["recent"]["passed_but_audit_failed"]["count"] == 40


def test_who_is_measured_learns_nothing_and_what_is_not_there_is_404(api):
    assert api.ask("GET", "/v1/tasks/sums/audit", key="client")[0] == 403
    assert api.ask("GET", "/v1/tasks/nothing/audit", key="client")[0] == 403
    status, answer, _ = api.ask("GET", "/v1/tasks/nothing/audit")
    assert (status, answer["error"]["code"]) == (404, "task_not_found")
