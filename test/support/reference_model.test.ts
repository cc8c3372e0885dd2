// The tests' float64 model against the logits in the fixtures: two independent float64
// computations.

import { readCheckpoint } from './checkpoints';
import { logitError } from './compare';
import { fixtures } from './fixtures';
import { logSumExp } from './reference';
import { modelLogits } from './reference_model';

describe.each(fixtures)('$name', ({ directory, cases, selectiveV }) => {
  const checkpoint = readCheckpoint(directory);

  it.each(cases.map((expected) => ({ length: expected.tokens.length, expected })).filter(({ length }) => length <= 40))(
    '$length tokens',
    ({ length, expected }) => {
      const logits = modelLogits(checkpoint, expected.tokens, { numLogits: length, selectiveV });
      expect(logitError(logits[length - 1] as Float64Array, expected.last_logits)).toBeLessThan(1e-6);
      logits.forEach((row, i) => {
        expect(Math.abs(logSumExp(row) - (expected.all_positions_logsumexp[i] as number))).toBeLessThan(1e-5);
      });
      const greedy = [...expected.tokens, ...expected.greedy];
      const [final] = modelLogits(checkpoint, greedy, { selectiveV });
      expect(logitError(final as Float64Array, expected.final_logits_after_greedy)).toBeLessThan(1e-6);
    },
  );
});
