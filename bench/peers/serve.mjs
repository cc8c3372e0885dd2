// The protocol of the processes of the peers: requests { call, ... } and answers { result } or { error }, over the channel of
// a forked process.

export async function serve(calls) {
  // Answers use a channel of their own, because native libraries sometimes write to stdout.
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
