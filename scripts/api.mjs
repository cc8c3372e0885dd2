// npm run api: writes the declarations of the package's public names into docs/api.md. Each block
// that follows a comment `<!-- declarations: NAME ... -->` is generated from dist/lib/index.d.ts,
// without doc comments and private members. Fails if the page lacks a public name or declares one
// twice.
//
//   node scripts/api.mjs [--check] [FILE ...]     --check: write nothing; fail if a file differs
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);
const ts = require('typescript');
const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const check = process.argv.includes('--check');
const named = process.argv.slice(2).filter((argument) => argument !== '--check');
const files = named.length > 0 ? named : [join(root, 'docs', 'api.md')];

const entry = join(root, 'dist', 'lib', 'index.d.ts');
const program = ts.createProgram([entry], {
  module: ts.ModuleKind.NodeNext,
  target: ts.ScriptTarget.ES2022,
  lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
  types: ['node'],
  skipLibCheck: true,
});
const checker = program.getTypeChecker();
const source = program.getSourceFile(entry);
if (!source) throw new Error(`${entry} is missing: run \`npm run build:ts\` first`);
const exported = new Map(
  checker
    .getExportsOfModule(checker.getSymbolAtLocation(source))
    .map((symbol) => [symbol.name, symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol]),
);

const isPrivate = (member) =>
  ts.isPrivateIdentifier(member.name ?? member) ||
  (ts.getCombinedModifierFlags(member) & ts.ModifierFlags.Private) !== 0;

/** The declaration without private members. Expands the names that are not exported. */
function publicPart(declaration) {
  const visit = (node) => {
    if (ts.isClassElement(node) && isPrivate(node)) return undefined;
    if (ts.isTypeOperatorNode(node) && node.operator === ts.SyntaxKind.KeyOfKeyword)
      return checker.typeToTypeNode(checker.getTypeFromTypeNode(node), undefined, ts.NodeBuilderFlags.NoTruncation);
    const copy = ts.visitEachChild(node, visit, undefined);
    return ts.isParameter(node.parent ?? node) && ts.isTypeLiteralNode(copy)
      ? ts.setEmitFlags(copy, ts.EmitFlags.SingleLine)
      : copy;
  };
  return ts.visitNode(declaration, visit);
}

/** The properties of an alias that is documented as an interface (`@interface`). */
function asInterface(name, declaration) {
  const flags = ts.NodeBuilderFlags.NoTruncation;
  const members = checker.getPropertiesOfType(checker.getTypeAtLocation(declaration)).map((property) => {
    const optional = property.flags & ts.SymbolFlags.Optional;
    const type = checker.getTypeOfSymbol(property);
    const shown = checker.typeToString(optional ? checker.getNonNullableType(type) : type, declaration, flags);
    return `readonly ${property.name}${optional ? '?' : ''}: ${shown};`;
  });
  return `interface ${name} { ${members.join('\n')} }`;
}

const printer = ts.createPrinter({ removeComments: true });

function textOf(name) {
  const symbol = exported.get(name);
  if (!symbol) throw new Error(`${name} is not exported`);
  return symbol.declarations
    .map((declaration) => {
      const isInterface = ts.getJSDocTags(declaration).some((tag) => tag.tagName.text === 'interface');
      if (isInterface && ts.isTypeAliasDeclaration(declaration)) return asInterface(name, declaration);
      const statement = ts.isVariableDeclaration(declaration) ? declaration.parent.parent : declaration;
      return printer.printNode(ts.EmitHint.Unspecified, publicPart(statement), declaration.getSourceFile());
    })
    .join('\n');
}

const blocks = new Map(); // keyed by the list of names

function formatted(text) {
  const biome = require.resolve('@biomejs/biome/bin/biome');
  const args = [biome, 'format', '--stdin-file-path=api.d.ts', '--line-width=100'];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: root, input: text, encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return stdout
    .replace(/^export /gm, '')
    .replace(/^declare /gm, '')
    .trim();
}

/** The page with newly generated blocks, and its errors. */
function rewritten(page) {
  const shown = [];
  const text = page.replace(/^(<!-- declarations: (.*) -->\n```ts\n)[\s\S]*?^```$/gm, (_, start, list) => {
    const names = list.split(' ');
    shown.push(...names);
    if (!blocks.has(list)) blocks.set(list, formatted(names.map(textOf).join('\n\n')));
    return `${start}${blocks.get(list)}\n\`\`\``;
  });
  const errors = [
    ...[...exported.keys()]
      .filter((name) => !shown.includes(name))
      .map((name) => `${name} is exported and not declared`),
    ...shown.filter((name, i) => shown.indexOf(name) !== i).map((name) => `${name} is declared twice`),
  ];
  if (check && text !== page) {
    const [now, then] = [page, text].map((lines) => lines.split('\n'));
    const at = then.findIndex((line, i) => line !== now[i]);
    errors.push(`line ${at + 1} is "${now[at]}", and must be "${then[at]}": run \`npm run api\``);
  }
  return { text, errors };
}

for (const file of files) {
  try {
    const { text, errors } = rewritten(readFileSync(file, 'utf8'));
    if (errors.length > 0) throw new Error(errors.join('; '));
    if (!check) writeFileSync(file, text);
  } catch (error) {
    console.error(`${file}: ${error.message}`);
    process.exitCode = 1;
  }
}
