// Reads the documentation pages: their code blocks, links and file names.

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join, posix } from 'node:path';
import { projectRoot } from '../support/fixtures';

export interface Block {
  page: string;
  /** The line number of its first line of code, from 1. */
  line: number;
  /** The text after the fence. Indented blocks are shell lines. */
  language: string;
  lines: string[];
  /** The marker `<!-- name (of): text -->` before the block. */
  marker?: { name: string; of: string[]; text: string };
}

const MARKER = /^<!--\s*(not run|from|text|declarations)(?:\s*\(([^)]*)\))?:?\s*(.*?)\s*-->$/;

/** Every page of the project, relative to the root. */
export function allPages(): string[] {
  const walk = (folder: string): string[] =>
    readdirSync(join(projectRoot, folder), { withFileTypes: true }).flatMap((entry) => {
      const path = posix.join(folder, entry.name);
      if (entry.isDirectory()) return /^(node_modules|dist|build.*|\..*)$/.test(entry.name) ? [] : walk(path);
      return entry.isFile() && entry.name.endsWith('.md') ? [path] : [];
    });
  return walk('.');
}

/** The pages whose code runs: README.md, docs and the examples' pages. */
export const pages = (): string[] => allPages().filter((page) => /^(README\.md|docs\/|examples\/)/.test(page));

export function blocksOf(page: string): Block[] {
  const lines = readFileSync(join(projectRoot, page), 'utf8').split('\n');
  const blocks: Block[] = [];
  let marker: Block['marker'];
  let inList = false;
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i] as string;
    const begin = (language: string, first: number): Block => {
      const block: Block = { page, line: first + 1, language, lines: [], ...(marker && { marker }) };
      marker = undefined;
      blocks.push(block);
      return block;
    };
    const fence = /^( *)(```+)(.*)$/.exec(line);
    const marked = MARKER.exec(line.trim());
    if (fence) {
      const [, indent = '', ticks = '', info = ''] = fence;
      const block = begin(info.trim(), i + 1);
      for (i++; i < lines.length && (lines[i] as string).trim() !== ticks; i++) {
        block.lines.push((lines[i] as string).replace(new RegExp(`^ {0,${indent.length}}`), ''));
      }
      if (i === lines.length) throw new Error(`${page}:${block.line}: the block has no end`);
    } else if (/^ {4,}\S/.test(line) && !inList && (lines[i - 1] ?? '') === '') {
      const block = begin('sh', i);
      for (; i < lines.length && /^( {4}|\s*$)/.test(lines[i] as string); i++)
        block.lines.push((lines[i] as string).slice(4));
      while (block.lines.at(-1) === '') block.lines.pop();
      i--;
    } else if (marked) {
      const [, name = '', of, text = ''] = marked;
      marker = { name, of: of?.split(/,\s*/) ?? [], text };
    } else if (line.trim() !== '') {
      if (marker) throw new Error(`${page}:${i + 1}: a marker must be followed by a block`);
      if (/^\s*([-*]|\d+\.) /.test(line)) inList = true;
      else if (/^\S/.test(line)) inList = false;
    }
  }
  return blocks;
}

/** The page without its blocks. */
function proseOf(page: string): string {
  const lines = readFileSync(join(projectRoot, page), 'utf8').split('\n');
  let open = '';
  return lines
    .filter((line) => {
      const fence = /^ *(```+)/.exec(line)?.[1] ?? '';
      if (open === '') {
        open = fence;
        return fence === '';
      }
      if (fence === open) open = '';
      return false;
    })
    .join('\n');
}

/** GitHub's anchors of a page's headings. */
function anchors(page: string): Set<string> {
  const headings = proseOf(page).matchAll(/^#+ (.*)$/gm);
  return new Set(
    [...headings].map(([, title = '']) => {
      const words = title.toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, '');
      return words.trim().replaceAll(' ', '-');
    }),
  );
}

/** The links and file names in `code` on a page that do not exist in the project. */
export function deadEnds(page: string): string[] {
  const prose = proseOf(page);
  const dead: string[] = [];
  for (const [, target = ''] of prose.matchAll(/\]\(([^)\s]+)\)/g)) {
    if (/^[a-z]+:/.test(target)) continue;
    const [path = '', anchor] = target.split('#');
    const file = path === '' ? page : posix.join(posix.dirname(page), path);
    if (!existsSync(join(projectRoot, file))) dead.push(target);
    else if (anchor !== undefined && !anchors(file).has(anchor)) dead.push(target);
  }
  // Ignores paths with a pattern (`cpu/*.cc`, `<stem>.cu`) and build outputs.
  const named = /`((?:bench|cli|csrc|cuda|docs|examples|lib|models|scripts|test)\/[\w./-]+\.\w+)`/g;
  for (const [, path = ''] of prose.matchAll(named)) if (!existsSync(join(projectRoot, path))) dead.push(path);
  return dead;
}

/**
 * Whether a file contains the block: the same lines in order, at any common indentation. A line of
 * `...` matches any lines.
 */
export function isExcerpt(block: Block): boolean {
  const file = block.marker?.text ?? '';
  if (!existsSync(join(projectRoot, file))) return false;
  const trimmed = (lines: string[]) => lines.map((line) => line.trim()).filter((line) => line !== '');
  const source = trimmed(readFileSync(join(projectRoot, file), 'utf8').split('\n'));
  const parts: string[][] = [[]];
  for (const line of trimmed(block.lines)) {
    if (line === '...') parts.push([]);
    else (parts.at(-1) as string[]).push(line);
  }
  let from = 0;
  return parts.every((part) => {
    for (let at = from; at + part.length <= source.length; at++) {
      if (!part.every((line, i) => source[at + i] === line)) continue;
      from = at + part.length;
      return part.length > 0;
    }
    return false;
  });
}
