"""A small OpenAI-compatible server that gives log-probabilities, which `transformers serve` leaves out.

    python logprob_server.py FOLDER PORT LOG

FOLDER is a causal language model with a chat template; it answers greedily, in fp32, one request at a time. Every
request and its answer are appended to LOG, so that what was made of them can be recomputed.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def complete(model, tokenizer, request: dict) -> dict:
    inputs = tokenizer.apply_chat_template(
        request["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    length = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=request["max_tokens"],
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = output.sequences[0, length:].tolist()
    ended = tokens[-1] == tokenizer.eos_token_id
    count = request.get("top_logprobs", 0)
    places = [
        place(tokenizer, token, logits[0].log_softmax(-1), count)
        for token, logits in zip(tokens, output.logits, strict=True)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": tokenizer.decode(tokens, skip_special_tokens=True)},
        "finish_reason": "stop" if ended else "length",
        "logprobs": {"content": places} if request.get("logprobs") else None,
    }
    usage = {"prompt_tokens": length, "completion_tokens": len(tokens), "total_tokens": length + len(tokens)}
    return {
        "id": "real",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [choice],
        "usage": usage,
    }


def place(tokenizer, token: int, logprobs: torch.Tensor, count: int) -> dict:
    """One token of the answer with its `count` likeliest alternatives, in OpenAI's form."""
    best = logprobs.topk(count)
    alternatives = [
        {"token": tokenizer.decode([index]), "logprob": value}
        for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return {"token": tokenizer.decode([token]), "logprob": logprobs[token].item(), "top_logprobs": alternatives}


def main() -> None:
    folder, port, log = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = complete(model, tokenizer, request)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"request": request, "answer": answer}) + "\n")
            self.reply(answer)

        def do_GET(self) -> None:
            self.reply({"status": "ok"})

        def reply(self, value: dict) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
