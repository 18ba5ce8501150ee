import java.time.Instant;
import java.util.Map;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;

/** Packs one order with Kafka's own client: java Produce.java localhost:9092 erp.order.packed.v1 */
public class Produce {
    public static void main(String[] args) throws Exception {
        Map<String, Object> config = Map.of(
                ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, args[0],
                ProducerConfig.ACKS_CONFIG, "all",
                ProducerConfig.ENABLE_IDEMPOTENCE_CONFIG, true);

        String tid = "3941893279420000003"; // a string: ids are longer than a double is exact
        String event = """
                {
                  "event_id": "wms-java-000001",
                  "occurred_at": "%s",
                  "shop_id": "123456789",
                  "tid": "%s",
                  "out_sid": "SF0000000000003",
                  "company_code": "SF"
                }
                """.formatted(Instant.now(), tid);

        try (var producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer())) {
            // The key decides the partition, so that the events of an order stay in order.
            producer.send(new ProducerRecord<>(args[1], tid, event)).get();
        }
    }
}
