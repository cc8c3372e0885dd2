// What the peers' processes share: requests { call, ... } and answers { result } or { error }, over the channel of a forked process.

export async function serve(calls) {
  // Native libraries write to stdout at times; answers go to a channel of their own.
  const answer = (message) => process.send(message);
  process.on('message', async ({ call, ...args }) => {
    try {
      answer({ result: await calls[call](args) });
    } catch (error) {
      answer({ error: String(error?.message ?? error) });
    }
  });
  process.on('disconnect', () => process.exit());
}
