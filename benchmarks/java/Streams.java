import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Locale;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AdminClientConfig;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/**
 * Deduplication as a user of Kafka Streams writes it: look the event ID up in a RocksDB store, hand
 * on what is new, put the ID. Prints one JSON line: messages, seconds, handled.
 *
 *     java Streams BOOTSTRAP TOPIC MESSAGES WARM_UP GUARANTEE THREADS STATE_DIR
 *
 * The clock runs from the first message after the warm-up to the last one's processing. Restoring,
 * starting and the last commit are left out, in favour of Kafka Streams.
 */
public final class Streams {
    private static final String STORE = "seen";
    private static final byte[] MARK = new byte[0];
    private static final Duration PATIENCE = Duration.ofMinutes(10);

    private final long messages;
    private final long warmUp;
    private final AtomicLong processed = new AtomicLong();
    private final AtomicLong handled = new AtomicLong();
    private final CountDownLatch done = new CountDownLatch(1);
    private final AtomicReference<Throwable> failure = new AtomicReference<>();
    private volatile long began;
    private volatile long ended;

    private Streams(long messages, long warmUp) {
        this.messages = messages;
        this.warmUp = warmUp;
    }

    private final class OnlyNew extends ContextualProcessor<byte[], byte[], byte[], byte[]> {
        private KeyValueStore<byte[], byte[]> seen;

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            super.init(context);
            seen = context.getStateStore(STORE);
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            if (began == 0 && processed.get() >= warmUp) {
                began = System.nanoTime();
            }
            byte[] id = record.headers().lastHeader("event-id").value();
            if (seen.get(id) == null) {
                context().forward(record);
                seen.put(id, MARK);
            }
            if (processed.incrementAndGet() == messages) {
                ended = System.nanoTime();
                done.countDown();
            }
        }
    }

    /** The empty handler. */
    private final class Handler extends ContextualProcessor<byte[], byte[], Void, Void> {
        @Override
        public void process(Record<byte[], byte[]> record) {
            handled.incrementAndGet();
        }
    }

    private Topology topology(String topic) {
        // RocksDB as Streams sets it: a Bloom filter, 50 MB of block cache, 3 x 16 MB of memtables,
        // no write-ahead log. Its changelog topic makes it durable. No record cache before it: no
        // key is ever put twice, so that it could only be in the way (measured: less than half as fast).
        var store = Stores.keyValueStoreBuilder(
            Stores.persistentKeyValueStore(STORE), Serdes.ByteArray(), Serdes.ByteArray());
        return new Topology()
            .addSource("source", topic)
            .addProcessor("only-new", OnlyNew::new, "source")
            .addStateStore(store.withCachingDisabled(), "only-new")
            .addProcessor("handler", Handler::new, "only-new");
    }

    private static Properties settings(
        String bootstrap, String application, String guarantee, String threads, Path state) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, application);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, state.toString());
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, guarantee);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, threads);
        // The default of exactly_once_v2 is 100 ms, for those who wait for its output. Here nobody
        // does, so it may commit as seldom as is sensible. at_least_once keeps its 30 s.
        if (guarantee.equals(StreamsConfig.EXACTLY_ONCE_V2)) {
            settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1_000);
        }
        // The changelog's records are small; 16 KB of them, the default, makes many requests.
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 256 * 1024);
        // No other machine to stand by on, no copy on another broker, no metrics a record.
        settings.put(StreamsConfig.NUM_STANDBY_REPLICAS_CONFIG, 0);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(StreamsConfig.METRICS_RECORDING_LEVEL_CONFIG, "INFO");
        settings.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
        settings.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
        settings.put(
            StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        return settings;
    }

    private void run(Topology topology, Properties settings) throws InterruptedException {
        boolean inTime;
        try (KafkaStreams streams = new KafkaStreams(topology, settings)) {
            streams.setUncaughtExceptionHandler(error -> {
                failure.set(error);
                done.countDown();
                return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
            });
            streams.start();
            inTime = done.await(PATIENCE.toSeconds(), TimeUnit.SECONDS);
        }
        if (failure.get() != null) {
            throw new IllegalStateException("a stream thread failed", failure.get());
        }
        if (!inTime) {
            throw new IllegalStateException(
                processed + " of " + messages + " messages were processed in " + PATIENCE);
        }
    }

    /** A long topic leaves hundreds of megabytes behind, every round. */
    private static void deleteChangelog(String bootstrap, String application) throws Exception {
        Properties settings = new Properties();
        settings.put(AdminClientConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        try (Admin admin = Admin.create(settings)) {
            admin.deleteTopics(List.of(application + "-" + STORE + "-changelog")).all().get();
        }
    }

    public static void main(String[] given) throws Exception {
        String bootstrap = given[0];
        Path state = Path.of(given[6]);
        String application = state.getFileName().toString();
        Streams streams = new Streams(Long.parseLong(given[2]), Long.parseLong(given[3]));
        streams.run(
            streams.topology(given[1]),
            settings(bootstrap, application, given[4], given[5], state));
        deleteChangelog(bootstrap, application);
        System.out.printf(
            Locale.ROOT,
            "{\"messages\": %d, \"seconds\": %.6f, \"handled\": %d}%n",
            streams.messages - streams.warmUp,
            (streams.ended - streams.began) / 1e9,
            streams.handled.get());
    }
}
