// Mutates the inputs of tokenizer_targets.cjs: JSON as a tree, templates and texts as words.
'use strict';

const dictionary = [
  ...['type', 'model', 'vocab', 'merges', 'added_tokens', 'decoder', 'decoders', 'normalizer', 'pre_tokenizer', 'post_processor'],
  ...['pretokenizers', 'normalizers', 'processors', 'pattern', 'String', 'Regex', 'content', 'special', 'lstrip', 'rstrip'],
  ...['single_word', 'normalized', 'behavior', 'invert', 'prepend_scheme', 'replacement', 'start', 'stop', 'prefix', 'suffix'],
  ...['unk_token', 'unk_id', 'byte_fallback', 'fuse_unk', 'ignore_merges', 'continuing_subword_prefix', 'end_of_word_suffix'],
  ...['bos_token', 'eos_token', 'add_bos_token', 'chat_template', 'max_input_chars_per_word', 'add_prefix_space', 'trim_offsets'],
  ...['BPE', 'WordPiece', 'Unigram', 'WordLevel', 'Sequence', 'ByteLevel', 'ByteFallback', 'Fuse', 'Strip', 'Replace', 'Metaspace'],
  ...['BPEDecoder', 'CTC', 'Whitespace', 'WhitespaceSplit', 'Split', 'Punctuation', 'Digits', 'BertPreTokenizer', 'NFC', 'NFKC'],
  ...['Prepend', 'Lowercase', 'StripAccents', 'BertNormalizer', 'Precompiled', 'TemplateProcessing', 'RobertaProcessing'],
  ...['Isolated', 'Removed', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous', 'always', 'never', 'first'],
  ...['<s>', '</s>', '<unk>', '##', '\u2581', '\u0120', '\ud83d\ude00', '\ud800', '\u0000', '<0x41>', '<0xF0>', '__proto__'],
  ...['\\p{L}+', '(a|b)*c', '(a+)+$', '[^\\s]+', '(?i:x)', '(?<=a)', '\\', '[', 'constructor', 'toString', 'length'],
];
const jinja = [
  ...['{{', '}}', '{%', '%}', '{%-', '-%}', '{#', '#}', '|', '(', ')', '[', ']', '.', ',', ':', '~', '+', '*', '%', '=='],
  ...['for', 'in', 'endfor', 'if', 'elif', 'else', 'endif', 'set', 'endset', 'macro', 'endmacro', 'call', 'endcall', 'filter'],
  ...['endfilter', 'loop.index', 'loop.first', 'loop.last', 'namespace(a=1)', 'ns.a', 'is defined', 'is none', 'not', 'and'],
  ...['or', 'messages', 'message', "message['role']", "message['content']", 'bos_token', 'add_generation_prompt', 'break'],
  ...['continue', 'generation', 'endgeneration', 'raise_exception("x")', 'range(3)', 'range(999999999)', 'strftime_now("%Y")'],
  ...['trim', 'tojson', 'tojson(indent=2)', 'join(",")', 'length', 'default("x")', 'replace("a", "b")', 'upper', 'title'],
  ...['items', 'dictsort', 'selectattr("role", "equalto", "user")', 'map(attribute="role")', 'list', 'string', 'int', 'float'],
  ...['split(" ")', 'startswith("a")', 'rstrip()', '0', '1', '-1', '1e9', "'a'", '[1,2]', '{"a":1}', '[::-1]', '[0:2]', 'none'],
];
const values = [null, true, false, 0, 1, -1, 0.5, 2 ** 24, 2 ** 32, 2 ** 53, 1e300, '', 'a', [], {}, [['a', 'b']], ['a b']];

/** A random number generator; equal seeds repeat a run. */
function generator(seed) {
  let state = seed >>> 0 || 1;
  return (limit) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % Math.max(1, limit);
  };
}

function mutateText(text, words, below) {
  const at = below(text.length + 1);
  const length = 1 + below(below(4) === 0 ? 40 : 4);
  switch (below(7)) {
    case 0:
      return text.slice(0, at) + text.slice(at + length);
    case 1:
      return text.slice(0, at) + text.slice(at, at + length) + text.slice(at);
    case 2:
      return text.slice(0, at) + String.fromCharCode(below(4) === 0 ? below(65536) : 32 + below(95)) + text.slice(at + 1);
    case 3: {
      const from = below(text.length);
      return text.slice(0, at) + text.slice(from, from + length) + text.slice(at);
    }
    default:
      return `${text.slice(0, at)}${words[below(words.length)]}${below(2) ? ' ' : ''}${text.slice(at + (below(2) ? length : 0))}`;
  }
}

/** Every place in a tree: [holder, key]. */
function places(value, found = []) {
  if (typeof value === 'object' && value !== null) {
    for (const key of Object.keys(value)) {
      found.push([value, key]);
      places(value[key], found);
    }
  }
  return found;
}

function mutateJson(text, below) {
  let root;
  try {
    root = JSON.parse(text);
  } catch {
    return mutateText(text, dictionary, below);
  }
  const all = places(root);
  if (all.length === 0) return mutateText(text, dictionary, below);
  const [holder, key] = all[below(all.length)];
  const [other, otherKey] = all[below(all.length)];
  const copy = (value) => (value === undefined ? null : JSON.parse(JSON.stringify(value)));
  const word = dictionary[below(dictionary.length)];
  switch (below(9)) {
    case 0:
      if (Array.isArray(holder)) holder.splice(Number(key), 1);
      else delete holder[key];
      break;
    case 1:
      holder[key] = values[below(values.length)];
      break;
    case 2:
      holder[key] = copy(other[otherKey]);
      break;
    case 3:
      if (Array.isArray(holder)) holder.splice(Number(key), 0, copy(other[otherKey]));
      else holder[word] = copy(other[otherKey]);
      break;
    case 4:
      if (typeof holder[key] === 'number') holder[key] += below(2) ? 1 : -1;
      else if (typeof holder[key] === 'string') holder[key] = mutateText(holder[key], dictionary, below);
      else holder[key] = word;
      break;
    case 5: // the type selects the code that runs
    case 6: {
      const typed = all.filter(([, name]) => name === 'type');
      const [place] = typed.length > 0 ? typed[below(typed.length)] : [holder];
      place.type = word;
      break;
    }
    case 7:
      holder[key] = word;
      break;
    default:
      return mutateText(text, dictionary, below);
  }
  return JSON.stringify(root);
}

/** Applies one to four mutations to `input`; `other` is a corpus input that provides parts. */
function mutate(target, input, other, below, maxLength) {
  const parts = input.split('\0');
  const others = other.split('\0');
  for (let count = 1 + below(4); count > 0; count--) {
    const i = below(10) < 6 ? 0 : below(parts.length);
    const part = parts[i] ?? '';
    const isTemplate = target === 'chat_template' ? i === 0 : i === 2;
    if (below(20) === 0) parts[i] = others[i] ?? '';
    else if (target === 'tokenizer' && i < 2) parts[i] = mutateJson(part, below);
    else parts[i] = mutateText(part, isTemplate ? jinja : dictionary, below);
  }
  const result = parts.join('\0');
  return result.length <= maxLength ? result : input;
}

module.exports = { generator, mutate };
