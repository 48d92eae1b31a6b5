"""Makes the parquet files of this folder and the rows that they must read as. Needs pyarrow 26.0.1."""

import datetime
import decimal
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq

HERE = os.path.dirname(os.path.abspath(__file__))
MESSAGE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def main():
    rows = [{
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{i}+1= \u00e9"}][i % 2:],
        "label": str(i + 1), "number": i - 2, "big": 2**63 + i, "ratio": i / 4, "yes": i % 2 == 0,
        "maybe": None if i % 3 == 0 else f"m{i}", "kind": ["a", "b"][i % 2], "tags": [f"t{k}" for k in range(i % 3)],
        "pairs": [{"key": "k", "value": i}],
    } for i in range(7)]
    columns = {
        "messages": pa.array([r["messages"] for r in rows], MESSAGE),
        "label": pa.array([r["label"] for r in rows], pa.large_string()),
        "number": pa.array([r["number"] for r in rows], pa.int8()),
        "big": pa.array([r["big"] for r in rows], pa.uint64()),
        "ratio": pa.array([r["ratio"] for r in rows], pa.float32()),
        "yes": pa.array([r["yes"] for r in rows]),
        "maybe": pa.array([r["maybe"] for r in rows]),
        "kind": pa.array([r["kind"] for r in rows]).dictionary_encode(),
        "tags": pa.array([r["tags"] for r in rows], pa.large_list(pa.string())),
        "pairs": pa.array([[("k", i)] for i in range(7)], pa.map_(pa.string(), pa.int32())),
    }
    # Three groups of rows, so that ranges cross their borders.
    pq.write_table(pa.table(columns), os.path.join(HERE, "rows.parquet"), row_group_size=3)
    with open(os.path.join(HERE, "rows.jsonl"), "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    odd = pa.table({
        "day": pa.array([datetime.date(2026, 1, 2)]),
        "time": pa.array([datetime.datetime(2026, 1, 2, 3, 4, 5)], pa.timestamp("s")),
        "price": pa.array([decimal.Decimal("1.50")], pa.decimal128(5, 2)),
        "picture": pa.array([b"\xff\xd8\x00"], pa.binary()),
        "bytes": pa.array([b"text"], pa.binary()),
        "span": pa.array([datetime.timedelta(seconds=1)], pa.duration("s")),
    })
    pq.write_table(odd, os.path.join(HERE, "odd.parquet"))
    text = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")])
    pq.write_table(pa.table({"input": text}), os.path.join(HERE, "not_utf8.parquet"))
    questions = [{"question": "How many is 70 + 2?", "answer": "70 and 2 more.\n#### 72"},
                 {"question": "And 1,000 more?", "answer": "It is <<1000+72=1072>>1072\n#### 1,072"}]
    pq.write_table(pa.Table.from_pylist(questions), os.path.join(HERE, "gsm8k.parquet"))


if __name__ == "__main__":
    main()
