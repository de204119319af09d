"""Upper bounds on everything that is read from a peer; each names where it comes from.

A bound is checked before the bytes are parsed. Both sides use the same numbers, so that nothing
that one may send is refused by the other.
"""

ENVELOPE_BYTES = 64 * 1024
"""A signed directive, assignment, stop or keyset. A directive with 32 arms takes about 12 KiB."""

MANIFEST_BYTES = 1024 * 1024
"""A signed manifest. 1,000 numeric features with 31 edges each take about 700 KiB."""

ROOT_BYTES = 512 * 1024
"""TUF root metadata; each key and signature takes about half a KiB."""

CERTIFICATE_BYTES = 16 * 1024
"""A certificate or a request for one in PEM; with P-256 keys one takes below 1 KiB."""

ANCHORS_BYTES = 64 * 1024
"""The certificates in PEM that vouch for server and broker: the present one and those before it."""

TIMESTAMP_BYTES = 16 * 1024
"""TUF timestamp metadata: one version number and a signature, below 1 KiB."""

SNAPSHOT_BYTES = 2 * 1024 * 1024
"""TUF snapshot metadata. 850 roles (50 models with 16 bins each) take about 30 KiB."""

TARGETS_BYTES = 5 * 1024 * 1024
"""TUF targets metadata of one role; a file takes about 220 bytes in it."""

REPORT_BYTES = 256 * 1024
"""A telemetry report; the brokers' ``max_packet_size`` is set above this."""

STATUS_BYTES = 64 * 1024
"""A presence, progress or acknowledgement message. 64 models with every text at its longest take
about 60 KiB of progress."""

MQTT_PACKET_BYTES = 512 * 1024
"""What a broker must let pass: the largest message above and its topic."""

ARMS = 32
"""Arms of one directive: two per stage are used, the rest is room for experiments."""

LARGEST_INTEGER = (1 << 63) - 1
"""Times, sequences, epochs and counts in messages: what a database's signed 64 bits hold."""

FAMILIES = 256
"""Models that a device names of its snapshot in a presence message: about 17 KiB at the longest."""

WINDOWS_PER_REPORT = 64
"""Windows in one report message; a longer backlog goes out in several messages."""

FEATURES = 1024
"""Features of one schema, inputs and outputs each."""

VOCABULARY = 4096
"""Categories of one categorical feature."""

ARTIFACT_BYTES = 2 * 1024**3
"""One artifact. ONNX itself cannot hold more in one protobuf file (2 GiB)."""

ROWS_PER_WINDOW = 1 << 22
"""Rows that one sketch may hold, so that sums on the 20-bit grid stay within 63 bits."""

BENCH_CANDIDATES = 32
"""Candidates of one bench job; the search makes about ten."""

BENCH_BYTES = 2 * 1024**3
"""All files of one bench job together."""

BENCH_ROWS_BYTES = 16 * 1024**2
"""The rows of a bench job: 27 colour images of 224 by 224 in float32."""

BENCH_RACE_MS = 60_000
"""How long one pair of a bench job may be timed; the server asks for two seconds."""
