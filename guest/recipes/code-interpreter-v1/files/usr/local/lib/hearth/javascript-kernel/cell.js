// Rewrites a cell to a script.
//
// Babel removes TypeScript's types. Then the names that the cell declares become global variables, so that later cells see
// them and may declare them again; imports become dynamic ones; and a cell that awaits is wrapped in an async function, which
// returns the value of the last expression. Line numbers stay.

"use strict";

const packages = require("./packages");

/** Key of the global function that imports call. */
const IMPORTED_NAMES = Symbol.for("hearth.imported-names");

// Loaded by the first cell, because it takes longer than all else.
let babel;
let typescript;

function load() {
  babel ??= packages("@babel/core");
  typescript ??= packages("@babel/preset-typescript");
}

/**
 * Returns the script of a cell: `code`, the `names` that it declares, whether it `isAsync`, and whether it `isEmpty`.
 *
 * Throws a SyntaxError that shows the place.
 */
function compile(source) {
  load();
  const typed = parse(source);
  if (typed.program.body.length === 0 && typed.program.directives.length === 0) {
    return { code: "", names: [], isAsync: false, isEmpty: true };
  }
  // The presets run first, on their own: they remove imports of types.
  const { ast } = babel.transformFromAstSync(typed, source, {
    ...OPTIONS,
    ast: true,
    code: false,
    // Values may be used by later cells, so imports without a use stay.
    presets: [[typescript, { onlyRemoveTypeImports: true, allowDeclareFields: true }]],
  });
  const cell = new Cell(babel.types, ast.program);
  const { names, isAsync } = cell.rewrite();
  const { code } = babel.transformFromAstSync(ast, source, { ...OPTIONS, retainLines: true, comments: false });
  return { code, names, isAsync, isEmpty: false };
}

// The preset decides by the extension that a file is TypeScript. No such file exists.
const FILENAME = "/cell.ts";
const OPTIONS = { filename: FILENAME, babelrc: false, configFile: false, highlightCode: false, compact: false };

function parse(source) {
  const options = {
    ...OPTIONS,
    sourceType: "unambiguous",
    presets: [[typescript, { onlyRemoveTypeImports: true }]],
    parserOpts: { allowAwaitOutsideFunction: true, allowNewTargetOutsideFunction: false },
  };
  const text = source.trim();
  if (text.startsWith("{") && text.endsWith("}")) {
    // As in Node's own prompt, `{a: 1}` is an object if it can be one.
    try {
      return babel.parseSync(`(${source}\n)`, options);
    } catch {
      // It is a block.
    }
  }
  try {
    return babel.parseSync(source, options);
  } catch (error) {
    throw syntaxError(error);
  }
}

function syntaxError(error) {
  const message = error.message.replace(`${FILENAME}: `, "");
  const syntax = new SyntaxError(message.split("\n", 1)[0]);
  syntax.stack = `SyntaxError: ${message}`;
  return syntax;
}

/** Rewriting of one cell's top level. */
class Cell {
  constructor(types, program) {
    this.types = types;
    this.program = program;
    this.names = new Set();
    this.functions = [];
  }

  rewrite() {
    const { types, program } = this;
    program.body = program.body.flatMap((statement) => this.statement(statement));
    const isAsync = this.awaits();
    if (isAsync) {
      this.nestedVariables();
    }
    const names = [...this.names];
    const body = isAsync ? [types.expressionStatement(this.asyncCall())] : program.body;
    const declarations = names.map((name) => types.variableDeclarator(types.identifier(name)));
    program.body = names.length === 0 ? body : [types.variableDeclaration("var", declarations), ...body];
    program.sourceType = "script";
    return { names: [...names, ...this.functions], isAsync };
  }

  /** Returns the statements that replace one at the top level. */
  statement(node) {
    const { types } = this;
    switch (node.type) {
      case "ImportDeclaration":
        return this.importDeclaration(node);
      case "ExportNamedDeclaration":
        if (node.declaration !== null && node.declaration !== undefined) {
          return this.statement(node.declaration);
        }
        return node.source ? [this.effect(this.dynamicImport(node), node)] : [];
      case "ExportAllDeclaration":
        return [this.effect(this.dynamicImport(node), node)];
      case "ExportDefaultDeclaration":
        return this.exportDefault(node.declaration);
      case "VariableDeclaration":
        return this.variables(node);
      case "ClassDeclaration":
        this.names.add(node.id.name);
        return [this.effect(types.assignmentExpression("=", node.id, types.toExpression(node)), node)];
      case "FunctionDeclaration":
        this.functions.push(node.id.name);
        return [node];
      default:
        return [node];
    }
  }

  /** Returns a statement that evaluates an expression and is not the result of the cell. */
  effect(expression, place) {
    const { types } = this;
    return types.inherits(types.expressionStatement(types.unaryExpression("void", expression)), place);
  }

  variables(node) {
    const { types } = this;
    Object.keys(types.getBindingIdentifiers(node)).forEach((name) => this.names.add(name));
    return node.declarations.flatMap(({ id, init }) => {
      if ((init === null || init === undefined) && node.kind === "var") {
        return [];
      }
      return [this.effect(types.assignmentExpression("=", id, init ?? types.identifier("undefined")), node)];
    });
  }

  exportDefault(declaration) {
    const { types } = this;
    if (types.isExpression(declaration)) {
      return [types.inherits(types.expressionStatement(declaration), declaration)];
    }
    if (declaration.id === null || declaration.id === undefined) {
      return [types.inherits(types.expressionStatement(types.toExpression(declaration)), declaration)];
    }
    return this.statement(declaration);
  }

  importDeclaration(node) {
    const { types } = this;
    const value = this.dynamicImport(node);
    const properties = [];
    let namespace = null;
    for (const { type, local, imported } of node.specifiers) {
      this.names.add(local.name);
      if (type === "ImportNamespaceSpecifier") {
        namespace = local;
      } else {
        const key = type === "ImportDefaultSpecifier" ? types.identifier("default") : imported;
        properties.push(types.objectProperty(key, local));
      }
    }
    const assign = (target, source) => types.assignmentExpression("=", target, source);
    const pattern = (source) => assign(types.objectPattern(properties), this.withNamesOf(source));
    if (namespace !== null) {
      const rest = properties.length === 0 ? [] : [this.effect(pattern(namespace), node)];
      return [this.effect(assign(namespace, value), node), ...rest];
    }
    return [this.effect(properties.length === 0 ? value : pattern(value), node)];
  }

  /** Returns a call of `importedNames`, which user code cannot redefine by accident. */
  withNamesOf(namespace) {
    const { types } = this;
    const key = types.callExpression(types.memberExpression(types.identifier("Symbol"), types.identifier("for")), [
      types.stringLiteral(Symbol.keyFor(IMPORTED_NAMES)),
    ]);
    return types.callExpression(types.memberExpression(types.identifier("globalThis"), key, true), [namespace]);
  }

  dynamicImport(node) {
    const { types } = this;
    const parameters = [node.source];
    if (node.attributes?.length > 0) {
      const attributes = node.attributes.map(({ key, value }) => types.objectProperty(key, value));
      parameters.push(types.objectExpression([types.objectProperty(types.identifier("with"), types.objectExpression(attributes))]));
    }
    return types.awaitExpression(types.callExpression(types.import(), parameters));
  }

  /** Returns true if the top level awaits. */
  awaits() {
    let found = false;
    this.outsideFunctions((node) => {
      found ||= node.type === "AwaitExpression" || (node.type === "ForOfStatement" && node.await);
    });
    return found;
  }

  /** Makes variables of blocks and loops global, which `var` does only outside a function. */
  nestedVariables() {
    const { types } = this;
    this.outsideFunctions((node) => {
      for (const key of types.VISITOR_KEYS[node.type] ?? []) {
        const child = node[key];
        if (Array.isArray(child)) {
          node[key] = child.flatMap((item) => (isVar(item) ? this.variables(item) : [item]));
        } else if (isVar(child)) {
          node[key] = this.replaced(child, node, key);
        }
      }
    });
  }

  /** Returns what replaces the only child of its kind, such as the initialisation of a loop. */
  replaced(child, parent, key) {
    const { types } = this;
    if (key === "left") {
      Object.keys(types.getBindingIdentifiers(child)).forEach((name) => this.names.add(name));
      return child.declarations[0].id;
    }
    const statements = this.variables(child);
    if (key === "init") {
      const expressions = statements.map(({ expression }) => expression);
      return expressions.length === 0 ? null : types.sequenceExpression(expressions);
    }
    return types.blockStatement(statements);
  }

  /** Calls the visitor with every node of the program that belongs to no function or class body. */
  outsideFunctions(visitor) {
    const { types } = this;
    const visit = (node) => {
      if (node === null || node === undefined || types.isFunction(node) || node.type === "ClassBody") {
        return;
      }
      visitor(node);
      for (const key of types.VISITOR_KEYS[node.type] ?? []) {
        [node[key]].flat().forEach(visit);
      }
    };
    this.program.body.forEach(visit);
  }

  /** Returns the call of an async function with the program's statements; it returns the last expression. */
  asyncCall() {
    const { types, program } = this;
    const body = program.body;
    const last = body.at(-1);
    if (last?.type === "ExpressionStatement") {
      body[body.length - 1] = types.inherits(types.returnStatement(last.expression), last);
    }
    // Functions of the cell are global, too.
    const exports = this.functions.map((name) => {
      const target = types.memberExpression(types.identifier("globalThis"), types.identifier(name));
      return this.effect(types.assignmentExpression("=", target, types.identifier(name)));
    });
    const block = types.blockStatement([...exports, ...body]);
    return types.callExpression(types.arrowFunctionExpression([], block, true), []);
  }
}

function isVar(node) {
  return node?.type === "VariableDeclaration" && node.kind === "var";
}

/**
 * Returns an object from which the names of an import are taken.
 *
 * Node.js does not see all names of a CommonJS module, so those of `module.exports` are added. A module that was compiled
 * from an ES module has its default export in a property.
 */
function importedNames(namespace) {
  const exported = namespace.default;
  if (exported === null || (typeof exported !== "object" && typeof exported !== "function")) {
    return namespace;
  }
  const names = Object.create(exported, Object.getOwnPropertyDescriptors(namespace));
  if (exported.__esModule && "default" in exported) {
    names.default = exported.default;
  }
  return names;
}

function install() {
  Object.defineProperty(globalThis, IMPORTED_NAMES, { value: importedNames });
}

module.exports = { compile, install, load };
