import { mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { abandoned, privateDirectory } from '../../lib/role/workdir.ts'
import { root, start, temporary } from '../support/run.ts'

const test = suite('workdir')

test('a private directory is abandoned when its maker is dead, and not before', async () => {
  const { path, remove } = temporary()
  const code = `import('./lib/role/workdir.ts').then(({ privateDirectory }) => {
    console.error(privateDirectory(${JSON.stringify(path)}, 'web-').path)
    setTimeout(() => {}, 60_000)
  })`
  const maker = start(process.execPath, ['--import', 'tsx', '-e', code], { cwd: root })
  const [made = ''] = await maker.says(/\/.*web-.*/)
  const mine = privateDirectory(path, 'web-')
  writeFileSync(join(mine.path, 'pages'), '')
  assert.equal(abandoned(path, /^web-/), [])
  await maker.stop('SIGKILL')
  const [left, ...more] = abandoned(path, /^web-/)
  assert.is(left?.path, made)
  assert.equal(more, [])
  assert.equal(abandoned(path, /^web-/), [], 'the finder has it now')
  left?.release()
  for (const one of abandoned(path, /^web-/)) one.remove()
  mine.remove()
  mine.remove()
  assert.equal(readdirSync(path), [])
  remove()
})

test('a directory of another name is not ours', () => {
  const { path, remove } = temporary()
  mkdirSync(join(path, 'web-1'))
  writeFileSync(join(path, 'app-1'), '')
  assert.equal(abandoned(path, /^app-/), [])
  remove()
})

test.run()
