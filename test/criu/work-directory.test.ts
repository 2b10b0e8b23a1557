import { chmodSync, mkdirSync, readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  abandoned,
  connectWithin,
  openDirectory,
  openWorkDir,
  privateDirectory,
  temporaryDirectory,
} from '../../lib/criu/work-directory.ts'
import { throwsFault } from '../expect.ts'
import { root, start, temporary } from '../support/run.ts'

const test = suite('criu/work-directory')

test('a private directory is abandoned when its maker is dead, and not before', async () => {
  const { path, remove } = temporary()
  const code = `import('./lib/criu/work-directory.ts').then(({ privateDirectory }) => {
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

test('a work directory is made for its owner only, or found, and its path has no links', () => {
  const { path, remove } = temporary()
  const made = join(path, 'made')
  assert.is(openDirectory(made), made)
  assert.is(statSync(made).mode & 0o777, 0o700)
  symlinkSync('made', join(path, 'link'))
  const work = openWorkDir(join(path, 'link'), 'a.sock')
  assert.is(work.path, made)
  assert.equal(readdirSync(made), ['a.sock'])
  work.remove()
  assert.equal(readdirSync(made), [])
  writeFileSync(join(path, 'file'), '')
  assert.match(throwsFault('IO', () => openDirectory(join(path, 'file'))).message, /EEXIST/)
  remove()
})

test('a directory that others can change is neither used nor asked, and one is not made there', () => {
  const { path, remove } = temporary()
  for (const mode of [0o1777, 0o777, 0o770]) {
    const place = join(path, mode.toString(8))
    mkdirSync(place)
    chmodSync(place, mode)
    throwsFault('USAGE', () => openDirectory(place), place)
    throwsFault('USAGE', () => openWorkDir(place, 'a.sock'), place)
    throwsFault('USAGE', () => connectWithin(place, 'a.sock', 'nobody is there'), place)
    if (mode === 0o1777) continue
    throwsFault('USAGE', () => openDirectory(join(place, 'below')), place)
    throwsFault('USAGE', () => temporaryDirectory(place), place)
    assert.equal(readdirSync(place), [])
  }
  const below = openDirectory(join(path, '1777', 'below'))
  assert.is(throwsFault('MISSING', () => connectWithin(below, 'a.sock', 'nobody is there')).message, 'nobody is there')
  throwsFault('MISSING', () => connectWithin(join(path, 'nowhere'), 'a.sock', 'nobody is there'))
  temporaryDirectory(join(path, '1777')).remove()
  assert.equal(readdirSync(join(path, '1777')), ['below'])
  remove()
})

test.run()
