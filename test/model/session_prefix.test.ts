// A chat's session keeps the tokens that it shares with the next turn.

import { Model } from '../../lib/index';
import { writeChatModel } from '../support/chat_model';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { onEveryDevice } from '../support/devices';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

onEveryDevice((device) => {
  it('keeps the tokens that the session shares with a turn, and answers as a new session does', async () => {
    const directory = writeChatModel(directories.make());
    writeCheckpoint(directory, randomCheckpoint({ vocabSize: 4096, numLayers: 1, maxPositionEmbeddings: 40 }));
    const small = await Model.load(directory, { device: device() });
    const chat = await small.createChat({ contextPolicy: 'shift' });
    let cache: number[] = [];
    for (let turn = 0; turn < 5; turn++) {
      const { messages, numDroppedMessages } = chat;
      const { tokens, usage } = await chat.send(`ls ${turn}`, { maxTokens: 4 }).result;
      expect(chat.numDroppedMessages > numDroppedMessages).toBe(turn === 4);
      const seen = [...messages, { role: 'user', content: `ls ${turn}` }].slice(chat.numDroppedMessages);
      const prompt = (await small.tokenizer?.encodeChat(seen)) as number[];
      const difference = prompt.findIndex((token, i) => token !== cache[i]);
      expect(usage).toEqual({ promptTokens: prompt.length, cachedTokens: difference, completionTokens: tokens.length });
      expect(tokens).toEqual((await small.generate(seen, { maxTokens: 4 }).result).tokens);
      cache = [...prompt, ...tokens];
    }
    small.dispose();
  });
});
