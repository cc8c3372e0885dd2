// The mutants of a C++ or CUDA source for test/tools/test-mutants.mjs: small changes of its code, each
// as { at, length, to, kind, line, from }.

/**
 * The text with blanks for what no mutant changes: comments, strings, preprocessor lines, assertions
 * of the compiler and the arguments of errors. Offsets and lines stay.
 */
export function codeOf(text) {
  const blank = (part) => part.replace(/[^\n]/g, ' ');
  let code = text
    .replace(/R"(\w*)\([\s\S]*?\)\1"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])'|\/\/[^\n]*|\/\*[\s\S]*?\*\//g, blank)
    .replace(/^[ \t]*#(?:\\\n|[^\n])*/gm, blank);
  for (const call of ['static_assert', 'fail', 'wrong_type', 'make_error', 'alignas', 'asm volatile', 'printf']) {
    for (let at = code.indexOf(`${call}(`); at >= 0; at = code.indexOf(`${call}(`, at + 1)) {
      const open = at + call.length;
      const inside = call === 'static_assert' ? at : open + 1;
      const end = closing(code, open);
      code = code.slice(0, inside) + blank(code.slice(inside, end)) + code.slice(end);
    }
  }
  return code;
}

/** The offset of the parenthesis that closes the one at `open`. */
function closing(code, open) {
  let depth = 0;
  for (let at = open; at < code.length; at++) {
    if (code[at] === '(') depth++;
    if (code[at] === ')' && --depth === 0) return at;
  }
  return code.length;
}

// A kind, what it replaces (its first group, or all of it), and the replacements. clang-format puts
// blanks around binary operators and none around the * and & of types.
const replacements = [
  ['comparison', / (<|<=|>|>=|==|!=) /g, { '<': ['<=', '>'], '<=': ['<'], '>': ['>=', '<'], '>=': ['>'] }],
  ['comparison', / (==|!=) /g, { '==': ['!='], '!=': ['=='] }],
  ['arithmetic', / ([-+*/%]) /g, { '+': ['-'], '-': ['+'], '*': ['/'], '/': ['*'], '%': ['/'] }],
  ['assignment', / ([-+*]=|\|=|&=) /g, { '+=': ['-=', '='], '-=': ['+='], '*=': ['='], '|=': ['&='], '&=': ['|='] }],
  ['logic', / (&&|\|\|) /g, { '&&': ['||'], '||': ['&&'] }],
  ['boolean', /\b(true|false)\b/g, { true: ['false'], false: ['true'] }],
  [
    'extremum',
    /\b(min|max|min_of|max_of|fminf|fmaxf)\(/g,
    {
      ...{ min: ['max'], max: ['min'], min_of: ['max_of'], max_of: ['min_of'], fminf: ['fmaxf'], fmaxf: ['fminf'] },
    },
  ],
];

const number = /(?<![\w.'"]|\de[-+])(\d+)(?![\w.'])|(?<![\w.])([01])\.0?f?(?![\w.'])/g;

/** The other values of a constant. */
function otherNumbers(text) {
  if (/^0\.?/.test(text) && Number.parseFloat(text) === 0) return [text === '0' ? '1' : text.replace('0', '1')];
  if (!/^\d+$/.test(text)) return [text.replace('1', '0')];
  return [String(Number(text) + 1), String(Number(text) - 1)];
}

const keyword =
  /^(using|typedef|case|default|static|constexpr|const|auto|template|namespace|struct|class|enum|friend|public|private|protected|explicit|inline|extern|virtual|goto|union|return\s+\S|return\s*\{|__)/;
/** Declares a name: a type, a name, and an initial value or none. */
const declaration = /^[A-Za-z_][\w:]*(<[^;]*>)?[\s*&]*(const\s*)?[\s*&]+[A-Za-z_]\w*\s*(\[[^;]*\]|\([^;]*\)|=|\{|,|$)/;

/** The statements that may be deleted, without the conditions and loops before them. */
function statements(code) {
  const found = [];
  const stack = [];
  let begin = 0;
  let depth = 0;
  for (let at = 0; at < code.length; at++) {
    if (code[at] === '(' || code[at] === '[') depth++;
    if (code[at] === ')' || code[at] === ']') depth--;
    if (code[at] === '{' || code[at] === '}') {
      // A brace inside parentheses opens the body of a lambda or an initializer.
      begin = at + 1;
      if (code[at] === '{') stack.push(depth);
      depth = code[at] === '{' ? 0 : (stack.pop() ?? 0);
    } else if (code[at] === ';' && depth === 0) {
      let from = begin;
      for (;;) {
        from += /^\s*/.exec(code.slice(from, at))[0].length;
        const head = /^(?:else\s+)?(?:(?:if|for|while)\s*(?:constexpr\s*)?(?=\()|else\s+|case [\w:]+:|default:)/.exec(
          code.slice(from, at),
        )?.[0];
        if (head === undefined) break;
        from += head.length;
        if (code[from] === '(') from = closing(code, from) + 1;
      }
      found.push([from, at]);
      begin = at + 1;
    }
  }
  return found.filter(([from, to]) => {
    const text = code.slice(from, to).trim();
    return text !== '' && !keyword.test(text) && !declaration.test(text) && !/^([\])}=,.>]|[-+*/%&|^<?:]+ )/.test(text);
  });
}
/**
 * Whether the line declares arrays of a function. More elements than are used change nothing there;
 * in a struct they move what follows.
 */
function declaresLocalArray(lines, index) {
  const line = lines[index].replace(/ *\/\/.*/, '');
  if (!/^ {2,}(alignas\(\d+\) )?(const )?[a-zA-Z_][\w:<>]*\*? \w+(\[[^\]]+\])+( = \{.*\})?;$/.test(line)) return false;
  if (/^ *return /.test(line)) return false;
  const indent = /^ */.exec(line)[0].length;
  let at = index - 1;
  while (at >= 0 && (/^\s*($|#)/.test(lines[at]) || /^ */.exec(lines[at])[0].length >= indent)) at--;
  return at >= 0 && !/\b(struct|class|union)\b|:$/.test(lines[at]);
}

/** All mutants of a source. */
export function mutantsOf(text) {
  const code = codeOf(text);
  const mutants = [];
  const add = (kind, at, length, to) => {
    const line = code.slice(0, at).split('\n').length;
    mutants.push({ kind, at, length, line, from: text.slice(at, at + length), to });
  };
  for (const [kind, pattern, table] of replacements) {
    for (const match of code.matchAll(pattern)) {
      const at = match.index + match[0].indexOf(match[1]);
      for (const to of table[match[1]] ?? []) add(kind, at, match[1].length, to);
    }
  }
  const lines = text.split('\n');
  for (const match of code.matchAll(number)) {
    const index = code.slice(0, match.index).split('\n').length - 1;
    const before = code.slice(code.lastIndexOf('\n', match.index) + 1, match.index);
    const isLength = /^[^=]*\[[^=]*$/.test(before) && code[match.index + match[0].length] === ']';
    for (const to of otherNumbers(match[0])) {
      if (isLength && Number(to) > Number(match[0]) && declaresLocalArray(lines, index)) continue;
      add('constant', match.index, match[0].length, to);
    }
  }
  for (const [from, to] of statements(code)) add('deletion', from, to - from, '');
  return mutants;
}

/**
 * The mutants of the table in architectures.cc: each row without one of its fields, also of a field
 * in braces, without one of the strings of a list, and with twice a number.
 */
export function rowMutantsOf(text) {
  const mutants = [];
  const code = text.replace(/\/\/[^\n]*/g, (part) => part.replace(/./g, ' '));
  const add = (at, length, to) => {
    const line = code.slice(0, at).split('\n').length;
    mutants.push({ kind: 'row', at, length, line, from: text.slice(at, at + length), to });
  };
  for (const { 0: row, index: start } of code.matchAll(/^ {6}\{\n {10}\.name[\s\S]*?^ {6}\},$/gm)) {
    for (const { 0: field, 1: name, index } of row.matchAll(/\.(\w+) = (?:\{[^{}]*\}|[^,{}]+)(?:, *)?/g)) {
      const at = start + index;
      if (name === 'name' || name === 'title') continue;
      add(at, field.length, '');
      const open = field.indexOf('{');
      if (open >= 0) {
        for (const inner of field.matchAll(/\.\w+ = [^,{}]+(?:, *)?|(?<=[{ ])"\w+"(?:,\s*)?/g)) {
          add(at + inner.index, inner[0].length, '');
        }
      }
      for (const inner of field.matchAll(/(?<= )\d[\d.e-]*(?=[,} ]|$)/g)) {
        add(at + inner.index, inner[0].length, String(2 * Number(inner[0])));
      }
    }
  }
  return mutants;
}

/** The text with the mutant in it. */
export const applyMutant = (text, { at, length, to }) => text.slice(0, at) + to + text.slice(at + length);

/** Numbers in [0, 1), the same for a seed (mulberry32). */
export function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x = (x + Math.imul(x ^ (x >>> 7), x | 61)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}
