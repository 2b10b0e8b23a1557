import { closeSync, mkdirSync, openSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { renameNew } from '../../lib/kernel/rename.ts'
import { throwsFault } from '../expect.ts'
import { temporary } from '../support/run.ts'

const test = suite('kernel/rename')

test('a directory gets a new name, and replaces nothing: not even an empty directory or a link to nowhere', () => {
  const { path, remove } = temporary()
  const directory = openSync(path, 'r')
  mkdirSync(join(path, 'made'))
  mkdirSync(join(path, 'empty'))
  writeFileSync(join(path, 'file'), '')
  symlinkSync('nowhere', join(path, 'link'))
  for (const name of ['empty', 'file', 'link']) assert.is(renameNew(directory, 'made', name), 'in the way', name)
  assert.is(renameNew(directory, 'made', 'images'), 'renamed')
  throwsFault('IO', () => renameNew(directory, 'made', 'more'))
  assert.equal(readdirSync(path).sort(), ['empty', 'file', 'images', 'link'])
  closeSync(directory)
  remove()
})

test.run()
