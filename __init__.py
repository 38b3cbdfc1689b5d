# A marker at the root: tools that read imports from files see the folders beside it as one package.
