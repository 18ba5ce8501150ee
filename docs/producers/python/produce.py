"""Packs one order with confluent-kafka: python produce.py localhost:9092 erp.order.packed.v1"""

import json
import sys
from datetime import datetime, timezone

from confluent_kafka import Producer

broker, topic = sys.argv[1:]

producer = Producer(
    {
        "bootstrap.servers": broker,
        # The default hashes differently than the clients of other languages do.
        "partitioner": "murmur2_random",
        "enable.idempotence": True,  # and with it acks=all
    }
)

event = {
    "event_id": "wms-python-000001",
    "occurred_at": datetime.now(timezone.utc).isoformat(),
    "shop_id": "123456789",
    "tid": "3941893279420000002",  # a string: ids are longer than a float is exact
    "out_sid": "SF0000000000002",
    "company_code": "SF",
}

failed = []
producer.produce(
    topic,
    key=event["tid"],
    value=json.dumps(event),
    on_delivery=lambda error, message: failed.append(error) if error else None,
)
left = producer.flush(30)
if failed or left:
    sys.exit(f"not produced: {failed or 'no answer'}")
