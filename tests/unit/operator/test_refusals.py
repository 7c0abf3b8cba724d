"""Faults of the corpus in which the API server refuses a pod: it is created once it may be."""

import asyncio

import pytest

from tests import patience
from tests.faults.corpus import Fault, faults, says
from tests.support.lifecycle.builders import make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_operator import probes
from trainyard_operator.client import RejectedError
from trainyard_operator.controller import Controller
from trainyard_operator.manifests import Images
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import ObjectKey
from trainyard_operator.runs import RunReconciler

RUN = "/apis/trainyard.dev/v1alpha1/namespaces/ns/trainingruns/r"
PODS = "/api/v1/namespaces/ns/pods"
KEY = ObjectKey("ns", "r")
REFUSED = [fault for fault in faults() if fault.case.refused]


def refuse(state: ApiServer, fault: Fault) -> None:
    refused = fault.case.refused
    assert refused
    if refused.reason == "AlreadyExists":
        state.put(f"/api/v1/namespaces/ns{refused.path}", {})  # a stranger's
    else:
        state.refuse("POST", refused.path, refused.status, refused.reason, refused.message)


def fix(state: ApiServer, fault: Fault) -> None:
    state.accept()
    state.objects.pop(f"{PODS}/r-1-0", None)
    if changes := fault.case.remedy.spec:
        run = state.objects[RUN]
        state.put(RUN, {**run, "spec": {**run["spec"], **changes}})


@pytest.mark.parametrize("fault", REFUSED, ids=str)
async def test_a_refusal_is_named_and_waited_for(fault: Fault) -> None:
    wire = make_run(**{"numNodes": 1} | fault.case.spec).to_wire()
    wire.pop("status")
    metrics = OperatorMetrics()
    async with api_server() as (state, kube), probes.session() as http:
        controller = Controller(kube, RunReconciler(kube, http, Images("ours:1"), metrics), metrics)
        state.put(RUN, wire)
        refuse(state, fault)
        async with asyncio.timeout(patience.SECONDS):
            for _ in range(2):  # trying again changes nothing
                with pytest.raises(RejectedError):
                    await controller.reconcile(KEY)
                status = state.objects[RUN]["status"]
                assert (status["phase"], status["reason"]) == ("Pending", fault.row.reason)
                assert says(status["message"], fault.line), status["message"]
                assert says(status["message"], fault.row.see), status["message"]
                assert status["attempt"] == 1
            fix(state, fault)
            await controller.reconcile(KEY)
            assert f"{PODS}/r-1-0" in state.objects
            await controller.reconcile(KEY)  # which sees the pod
        assert state.objects[RUN]["status"]["reason"] == "Creating"
