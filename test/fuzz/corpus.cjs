// Reads and writes the fuzzers' kept inputs, corpus.tar.gz: one folder per target.
'use strict';

const { execFileSync } = require('node:child_process');
const { join } = require('node:path');

const archive = join(__dirname, 'corpus.tar.gz');

/** Extracts the corpus to an existing folder. */
function unpackCorpus(folder) {
  execFileSync('tar', ['-xzf', archive, '-C', folder]);
}

/** Replaces the corpus with a folder's contents. Equal contents produce equal bytes. */
function packCorpus(folder) {
  const same = ['--sort=name', '--mtime=@0', '--owner=0', '--group=0', '--numeric-owner', '--mode=u=rwX,go=rX'];
  execFileSync('tar', ['-cf', archive, ...same, '-I', 'gzip -9n', '-C', folder, '.']);
}

module.exports = { packCorpus, unpackCorpus };
