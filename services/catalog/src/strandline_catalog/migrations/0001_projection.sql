-- What the catalog knows, all of it from elsewhere (docs/catalog.md).
-- `body` is the message as its owner wrote it, in MessagePack; the columns beside it are for finding.
-- Times are Unix nanoseconds.

CREATE TABLE source (
    id        text    PRIMARY KEY,
    name      text    COLLATE "C" NOT NULL,
    server    text    NOT NULL,
    store     text    NOT NULL,
    protected boolean NOT NULL,
    body      bytea   NOT NULL
);
CREATE INDEX source_by_name ON source (name, id);

CREATE TABLE point (
    source         text   NOT NULL,
    number         bigint NOT NULL,
    store          text   NOT NULL,
    taken_at_ns    bigint NOT NULL,
    received_at_ns bigint NOT NULL,
    stored_bytes   bigint NOT NULL,
    digest         bytea  NOT NULL,
    seen_at_ns     bigint NOT NULL,
    body           bytea  NOT NULL,
    PRIMARY KEY (source, number)
);
CREATE INDEX point_by_time ON point (source, taken_at_ns, number);

-- Counted as points come and go: counting 340,000 rows at each question would take too long.
CREATE TABLE source_total (
    source       text   PRIMARY KEY,
    points       bigint NOT NULL,
    stored_bytes bigint NOT NULL
);

CREATE FUNCTION count_points() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        UPDATE source_total AS t
           SET points = t.points - gone.points, stored_bytes = t.stored_bytes - gone.bytes
          FROM (SELECT source, count(*) AS points, sum(stored_bytes) AS bytes
                  FROM old_points GROUP BY source) AS gone
         WHERE t.source = gone.source;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO source_total AS t
        SELECT source, count(*), sum(stored_bytes) FROM new_points GROUP BY source
            ON CONFLICT (source) DO UPDATE
           SET points = t.points + excluded.points,
               stored_bytes = t.stored_bytes + excluded.stored_bytes;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER point_inserted AFTER INSERT ON point
    REFERENCING NEW TABLE AS new_points FOR EACH STATEMENT EXECUTE FUNCTION count_points();
CREATE TRIGGER point_updated AFTER UPDATE ON point
    REFERENCING OLD TABLE AS old_points NEW TABLE AS new_points
    FOR EACH STATEMENT EXECUTE FUNCTION count_points();
CREATE TRIGGER point_deleted AFTER DELETE ON point
    REFERENCING OLD TABLE AS old_points FOR EACH STATEMENT EXECUTE FUNCTION count_points();

-- (ended, attempt, rank, updated_at_ns) orders the states of one job: projection.standing.
CREATE TABLE job (
    origin         text     NOT NULL,
    job            text     NOT NULL,
    source         text     NOT NULL,
    accepted_at_ns bigint   NOT NULL,
    ended          boolean  NOT NULL,
    attempt        bigint   NOT NULL,
    rank           smallint NOT NULL,
    updated_at_ns  bigint   NOT NULL,
    body           bytea    NOT NULL,
    PRIMARY KEY (origin, job)
);
CREATE INDEX job_by_time ON job (accepted_at_ns, job);
CREATE INDEX job_of_source ON job (source, accepted_at_ns, job);
CREATE INDEX job_open ON job (accepted_at_ns, job) WHERE NOT ended;

CREATE TABLE damage (
    event       text   PRIMARY KEY,
    origin      text   NOT NULL,
    source      text   NOT NULL,
    found_at_ns bigint NOT NULL,
    body        bytea  NOT NULL
);
CREATE INDEX damage_of_source ON damage (source, found_at_ns);

-- Up to which message of which EVENTS (known by the time of its creation) this database is filled.
CREATE TABLE stream_position (
    stream   text   PRIMARY KEY,
    created  text   NOT NULL,
    sequence bigint NOT NULL
);

-- The last number of each origin's events of each noun about each source.
CREATE TABLE event_offset (
    origin text   NOT NULL,
    noun   text   NOT NULL,
    source text   NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (origin, noun, source)
);

-- Events that never came. `last_number` is null when nobody knows how many.
CREATE TABLE event_gap (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    origin       text   NOT NULL,
    noun         text   NOT NULL,
    source       text   NOT NULL,
    first_number bigint NOT NULL,
    last_number  bigint,
    reason       text   NOT NULL,
    found_at_ns  bigint NOT NULL,
    closed_at_ns bigint,
    outcome      text
);
CREATE INDEX event_gap_open ON event_gap (id) WHERE closed_at_ns IS NULL;
