-- Whoever deletes an event, with its job or because it was thinned out, takes it from nobody who was not told yet.
CREATE INDEX deliveries_untold ON deliveries (seq) WHERE state <> 'delivered' AND body IS NULL;
CREATE TRIGGER keep_untold_events BEFORE DELETE ON events BEGIN
    UPDATE deliveries SET body = OLD.body WHERE seq = OLD.seq AND state <> 'delivered' AND body IS NULL;
END;
