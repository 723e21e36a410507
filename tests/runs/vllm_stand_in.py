"""A server that speaks vLLM's API for completions of token ids and for LoRA adapters, over transformers and PEFT."""

import json
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import torch
from peft import PeftModel


class StandIn:
    """What the server holds.

    Args:
        model: the base model.
        serves_base: whether it answers as the base model whatever adapter is named, as vLLM does with one that fits no layer.
        loads: whether adapters may be loaded at run time.
    """

    def __init__(self, model, *, serves_base=False, loads=True):
        self.base, self.serves_base, self.loads = model, serves_base, loads
        self.peft, self.lock = None, Lock()
        self.asked = []

    def models(self):
        adapters = list(self.peft.peft_config) if self.peft else []
        return [{"id": "base-model", "parent": None}, *({"id": name, "parent": "base-model"} for name in adapters)]

    def add(self, body):
        if not self.loads:
            return 404, {"detail": "Not Found"}
        name, path = body["lora_name"], body["lora_path"]
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(self.base, path, adapter_name=name).eval()
        else:
            self.peft.load_adapter(path, adapter_name=name)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    @torch.no_grad()
    def complete(self, body):
        self.asked.append((body["model"], body["max_tokens"]))
        if body["model"] not in {one["id"] for one in self.models()}:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        assert body["temperature"] == 0
        is_base = body["model"] == "base-model" or self.serves_base
        if not is_base:
            self.peft.set_adapter(body["model"])
        model = self.peft or self.base
        assert body["return_tokens_as_token_ids"]
        tokens, tops, reason = [], [], "length"
        ids = torch.tensor([body["prompt"]])
        for _ in range(body["max_tokens"]):
            with model.disable_adapter() if self.peft and is_base else nullcontext():
                logits_V = model(input_ids=ids).logits[0, -1]
            logprobs_V = logits_V.float().log_softmax(-1)
            top = logprobs_V.topk(body["logprobs"])
            (token,) = body.get("allowed_token_ids") or [int(top.indices[0])]
            tokens.append(token)
            tops.append(
                {f"token_id:{id_}": value for id_, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)}
            )
            tops[-1][f"token_id:{token}"] = float(logprobs_V[token])  # vLLM adds the one that is written
            if token in body.get("stop_token_ids", ()):
                reason = "stop"
                break
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
        logprobs = {"tokens": [f"token_id:{token}" for token in tokens], "top_logprobs": tops}
        return 200, {"choices": [{"text": "", "logprobs": logprobs, "finish_reason": reason}]}


@contextmanager
def serving(stand_in):
    """The address of a running server."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status, content):
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            with stand_in.lock:
                self.answer(200, {"data": stand_in.models()} if self.path == "/v1/models" else {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stand_in.lock:
                work = {"/v1/load_lora_adapter": stand_in.add, "/v1/completions": stand_in.complete}[self.path]
                self.answer(*work(body))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
