import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { readCriuCommand } from '../../lib/criu/command-line.ts'
import { configuredOptions, optionsIn, startOf } from '../../lib/criu/config-files.ts'
import { refuseLeaving } from '../../lib/criu/run.ts'
import { throwsFault } from '../expect.ts'
import { temporary } from '../support/run.ts'

const test = suite('criu/config-files')

test('lines are options without their dashes; a comment goes to the end of its line', () => {
  for (const [text, words] of [
    ['leave-running', ['--leave-running']],
    ['# leave-running\nshell-job # leave-running\n\n \t leave-stopped\n', ['--shell-job', '--leave-stopped']],
    ['tree 7\nlog-file "a b"', ['--tree', '7', '--log-file', 'a b']],
    ['shell-job -R', ['--shell-job', '-R']],
    ['#', []],
    ['', []],
  ] as const) {
    assert.equal(optionsIn(text), words, text)
  }
})

/** A file system with every configuration file, each with an option that is its name. */
function configured() {
  const { path, remove } = temporary()
  for (const folder of ['etc/criu', 'root/.criu', 'own']) mkdirSync(join(path, folder), { recursive: true })
  writeFileSync(join(path, 'etc/criu/default.conf'), 'global')
  writeFileSync(join(path, 'root/.criu/default.conf'), 'user')
  writeFileSync(join(path, 'own/env.conf'), 'env')
  writeFileSync(join(path, 'own/named.conf'), 'named')
  return { root: path, remove }
}

test('which files a criu reads, and in which order', () => {
  const { root, remove } = configured()
  const home = { HOME: '/root' }
  const all = { ...home, CRIU_CONFIG_FILE: 'env.conf' }
  for (const [words, environment, found] of [
    [[], home, ['--global', '--user']],
    [[], {}, ['--global']],
    [[], all, ['--global', '--user', '--env']],
    [['--no-default-config'], home, []],
    [['--no-default-config'], all, ['--env']],
    [['--config', '/own/named.conf'], all, ['--env', '--named']],
    [['--config=named.conf'], home, ['--named']],
    [['--config', 'nowhere'], home, []],
    [['--config'], home, ['--global', '--user']],
  ] as const) {
    const options = configuredOptions(['criu', 'dump', ...words], { environment, root, directory: '/own' })
    assert.equal(options, found, words.join(' '))
  }
  remove()
})

test('a file that is a FIFO says nothing, and holds up nobody', () => {
  const { root, remove } = configured()
  assert.is(spawnSync('mkfifo', [join(root, 'own/pipe')]).status, 0)
  const start = { environment: {}, root, directory: '/own' }
  assert.equal(configuredOptions(['criu', 'dump', '--config', 'pipe'], start), [])
  remove()
})

test('of a criu that runs: its own environment counts, and where it was started', async () => {
  const { root, remove } = configured()
  const home = join(root, 'root')
  writeFileSync(join(home, '.criu/default.conf'), 'leave-running')
  writeFileSync(join(root, 'own/env.conf'), 'leave-stopped')
  for (const [environment, words, leaves] of [
    [{ HOME: home }, [], true],
    [{ HOME: home }, ['--no-default-config'], false],
    [{ HOME: '/nowhere' }, [], false],
    [{ HOME: '/nowhere', PWD: join(root, 'own'), CRIU_CONFIG_FILE: 'env.conf' }, ['--no-default-config'], true],
  ] as const) {
    const line = ['-e', '$| = 1; print 1; <STDIN>', 'dump', '-t', '7', ...words]
    const child = spawn('perl', line, { cwd: '/', env: { ...environment }, stdio: ['pipe', 'pipe', 'ignore'] })
    await once(child.stdout, 'data')
    assert.is(readCriuCommand(child.pid ?? 0)?.leaves, leaves, JSON.stringify([environment, words]))
    assert.is(startOf(child.pid ?? 0).environment.HOME, environment.HOME)
    child.stdin.end()
    await once(child, 'exit')
  }
  remove()
})

test('a hand-over refuses a criu that its configuration tells to leave the process', () => {
  const { root, remove } = configured()
  const file = join(root, 'own/named.conf')
  writeFileSync(file, 'leave-running\n')
  const { message } = throwsFault('USAGE', () => refuseLeaving(['--config', file], 'pre-copy', ''))
  assert.match(message, /--leave-running, which a configuration file of criu's has, and pre-copy do not go together/)
  refuseLeaving(['--no-default-config'], 'pre-copy', '')
  remove()
})

test.run()
