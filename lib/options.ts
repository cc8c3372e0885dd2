import { checkObject, invalidArgument } from './errors';

/** The names of the properties of `Options`. The compiler rejects a list that lacks one. */
export type OptionNames<Options> = Readonly<Record<keyof Options, true>>;

/**
 * Checks an object of options and copies those of its properties that are not undefined, own and
 * inherited, so that the caller may change it. `name` names the object in messages. Throws
 * ERR_INVALID_ARGUMENT if `options` is not an object, or has an enumerable property that is not
 * undefined and not in `names`.
 */
export function readOptions<Options extends object>(
  name: string,
  options: Options,
  names: OptionNames<Options>,
): Options {
  checkObject(name, options);
  for (const key in options) {
    if (Object.hasOwn(names, key) || options[key] === undefined) continue;
    // Not what other code has added to all objects.
    if (Object.hasOwn(options, key) || !(key in Object.prototype)) {
      throw unknownName(name, key, Object.keys(names));
    }
  }
  const copy = {} as Options;
  for (const key of Object.keys(names) as (keyof Options)[]) {
    const value = options[key];
    if (value !== undefined) copy[key] = value;
  }
  return copy;
}

function unknownName(object: string, name: string, known: string[]): Error {
  const shown = JSON.stringify(name.length > 60 ? `${name.slice(0, 60)}...` : name);
  const near = nearest(name, known);
  const hint = near === undefined ? '' : `: did you mean ${near}?`;
  return invalidArgument(
    `unknown name ${shown} in ${object}${hint}${hint === '' ? '. ' : ' '}The known names are ` +
      known.join(', '),
  );
}

/** The known name that differs in at most a third of its characters. */
function nearest(name: string, known: readonly string[]): string | undefined {
  const plain = (text: string) => text.replace(/[_-]/g, '').toLowerCase();
  const wanted = plain(name.slice(0, 100));
  let [best, least] = [undefined as string | undefined, Number.POSITIVE_INFINITY];
  for (const candidate of known) {
    const distance = editDistance(wanted, plain(candidate));
    if (distance < least && 3 * distance <= candidate.length) {
      best = candidate;
      least = distance;
    }
  }
  return best;
}

/** Number of characters to insert, delete or replace (Levenshtein). */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = (row[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[j] as number) + 1, (next[j - 1] as number) + 1));
    }
    row = next;
  }
  return row[b.length] as number;
}
