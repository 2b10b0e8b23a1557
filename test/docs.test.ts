/** The documents speak of tests that are there. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { root } from './support/run.ts'

const test = suite('docs')

/** `test/criu/{capture,serve}` names two files. */
function filesIn(text: string): string[] {
  return [...text.matchAll(/\b(test\/\w+\/)(?:\{([\w,-]+)\}|([\w-]+))/g)].flatMap(([, folder = '', many, one = '']) =>
    (many?.split(',') ?? [one]).map((name) => `${folder}${name}.test.ts`),
  )
}

test('each test that docs/security.md names is there', () => {
  const named = filesIn(readFileSync(join(root, 'docs', 'security.md'), 'utf8'))
  assert.ok(named.length > 15, named.join(' '))
  for (const file of named) assert.ok(existsSync(join(root, file)), file)
})

test.run()
