// The event stream behind a cursor. The browser reconnects by itself and says the last id it has.

export function listen(after, onEvent, onState) {
  const source = new EventSource(`/api/events?after=${after}`);
  source.onopen = () => onState("live");
  source.onerror = () => onState(source.readyState === EventSource.CLOSED ? "closed: reload the page" : "reconnecting …");
  source.onmessage = (message) => onEvent(JSON.parse(message.data));
  return () => source.close();
}
